"""The search itself: Optuna's TPE over a space, trained on the training split and judged on the validation split.

A trial is priced before anything is built; one over the budget is refused at no cost, and TPE learns from it as from a
broken constraint. Trials live in a journal file or a database, from which a search goes on and which several processes
share.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from importlib.util import find_spec
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resfit import processes
from resfit.budget import judge
from resfit.cost import cost
from resfit.data import has_validation
from resfit.device import pick_device, spread
from resfit.environment import environment, without_password
from resfit.errors import BadInput, ResfitError, RunFailed, sendable
from resfit.fields import to_plain
from resfit.files import is_alive
from resfit.observer import Observer
from resfit.recipe import Recipe
from resfit.record import EpochPoint, settings
from resfit.run import validation_curve
from resfit.scale import scaled
from resfit.tune.space import Dimension, Space
from resfit.tunerecord import Outcome, TrialRecord, TuneRecord, read_search
from resfit.version import __version__

try:
    import optuna
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import IntegrityError, ProgrammingError
except ImportError:
    raise BadInput("Optuna is not installed (resfit tune): pip install 'resfit[tune]'") from None

if TYPE_CHECKING:
    from resfit.data import Dataset
    from resfit.executors.cluster import OnRay

Fit = Callable[[Recipe, int, Observer], tuple[EpochPoint, ...]]

_REFUSALS = 100  # in a row: then the space holds next to nothing that fits
_STARTUP = 5  # complete trials ahead of the first that may be pruned
_FEWEST = 4  # complete trials, for anything to be said of the fields' importance
_UNTOUCHED = 5  # a trial is not pruned in the first of so many parts of its epochs
_TABLE_MAKERS = 5  # processes that may make a new database's tables at the same time
_UNNAMED = timedelta(minutes=1)  # in which the process of a new trial tells its name
_JOURNAL = b'{"op_code":'  # how each of its lines begins
_ASKING = threading.Lock()  # threads of one search begin trials in turn, lest they begin too many


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, and where its trials are kept: a journal file's path or a database's URL.

    With `epochs` and `fraction` the trials are `recipe` scaled down; the best is given at full length.
    """

    recipe: Recipe
    space: Space
    storage: str
    epochs: int | None = None
    fraction: float = 1.0
    seed: int = 0
    data_dir: Path | None = None
    offline: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if not has_validation(self.recipe.data, self.data_dir):
            raise BadInput(f"{self.recipe.name} has no validation split (data.val): give one, as in --data.val 5000")
        if self.recipe.evaluate.selection == "best-test":
            raise BadInput("a search may not look at the test set (evaluate.selection): give last or best-val")
        self.space.check(self.recipe)

    @property
    def place(self) -> str:
        """Where the trials are kept, in words that hold no password."""
        return without_password(self.storage.rpartition("@")[2])

    def trial_recipe(self, drawn: dict[str, Any]) -> Recipe:
        """The recipe that a trial trains; raises BadInput where the values don't go together."""
        factor = 1.0 if self.epochs is None else self.epochs / self.recipe.train.epochs
        return scaled(self.space.apply(self.recipe, drawn), factor, self.fraction)

    def best_recipe(self, drawn: dict[str, Any]) -> Recipe:
        """The recipe at full length with a trial's values."""
        origin = self.recipe.name
        words = f"{origin} with settings found on its validation split"
        return self.space.apply(self.recipe, drawn).replace({"name": f"{origin}-tuned", "description": words})

    def validation_curve(self, recipe: Recipe, seed: int, observer: Observer) -> tuple[EpochPoint, ...]:
        """Train a trial in this process."""
        return validation_curve(
            recipe,
            seed=seed,
            data_dir=self.data_dir,
            device=self.device,
            offline=self.offline,
            observer=observer,
        )

    def identity(self) -> dict[str, Any]:
        """What may not change from one call to the next, lest trials be compared that cannot be."""
        scale = {"epochs": self.epochs, "fraction": self.fraction}
        return {"recipe": settings(self.recipe.to_dict()), "space": self.space.to_dict(), **scale, "seed": self.seed}

    def require_own(self, folder: Path) -> None:
        """Raise BadInput where `folder` holds the results of another search, which would be overwritten."""
        if not (folder / "tune.json").exists():
            return
        then = read_search(folder)
        was = {"recipe": settings(then.config), "space": then.space, "epochs": then.epochs, "fraction": then.fraction}
        now = to_plain({**self.identity(), "epochs": self.epochs or self.recipe.train.epochs})
        if changed := [name for name, value in {**was, "seed": then.seed}.items() if now[name] != value]:
            what = ", ".join(changed)
            raise BadInput(f"another search exists already ({folder}: {what} changed): give another --out")


def say(line: str) -> None:
    """Print a line on standard error at once."""
    print(line, file=sys.stderr, flush=True)


def run_search(search: Search, trials: int, *, workers: int = 1, cluster: OnRay | None = None) -> TuneRecord:
    """Go on until `trials` trials were trained, in `workers` processes or on a Ray cluster, and say a line on each.

    Trials of processes that are gone are marked as failed. Raises BadInput where the storage holds another search, and
    RunFailed where hardly anything of the space fits the budget.
    """
    study = _open(search)
    _check_identity(study, search)
    for trial in _orphans(study):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        say(f"trial {trial.number}: failed, its process is gone")
    workers = min(workers, max(trials - _count(study), 1))
    if cluster is not None and _count(study) < trials:
        _work_on(cluster, search, trials)
    elif workers == 1:
        _work(search, trials)
    else:
        _work_in_parallel(search, trials, workers)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        where = trial.user_attrs.get("process", "another process")
        say(f"trial {trial.number}: under way in {where}; if that is gone, ask for one trial more (--trials)")
    return record(search)


def record(search: Search) -> TuneRecord:
    """The search as far as it went."""
    study = _open(search)
    trials = study.get_trials(deepcopy=False)
    records = tuple(_trial_record(trial, search) for trial in trials)
    complete = [trial for trial in records if trial.outcome == "complete"]
    best = max(complete, key=lambda trial: trial.accuracy or 0.0, default=None)
    return TuneRecord(
        resfit=__version__,
        recipe=search.recipe.name,
        config=search.recipe.to_dict(),
        space=search.space.to_dict(),
        budget=search.recipe.budget,
        epochs=search.epochs or search.recipe.train.epochs,
        fraction=search.fraction,
        seed=search.seed,
        data=study.user_attrs.get("data", {}),
        env=environment(pick_device(search.device)),
        trials=records,
        importance=_importance(study),
        best=None if best is None else best.number,
        best_recipe=None if best is None else search.best_recipe(trials[best.number].params).to_dict(),
    )


def _open(search: Search) -> optuna.Study:
    """The study in the search's storage, new where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _database(search.storage) if "://" in search.storage else _journal(Path(search.storage))
        study = optuna.create_study(
            storage=storage, study_name=search.recipe.name, direction="maximize", load_if_exists=True
        )
    except BadInput:
        raise
    except Exception as error:  # of whichever database it is
        reason = without_password(f"{type(error).__name__}: {str(error).strip()}")
        raise BadInput(f"no trials can be kept there ({search.place}): {reason}") from None
    epochs = search.epochs or search.recipe.train.epochs
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=epochs // _UNTOUCHED)
    return study


def _journal(path: Path) -> BaseStorage:
    path = path.resolve()  # the lock is a link, which would point nowhere from a relative path
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend(path)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


@cache
def _database(url: str) -> BaseStorage:
    """Trials in a database, whose connections all threads share; PostgreSQL is spoken to by psycopg."""
    kind, _, rest = url.partition("://")
    if kind == "postgresql":
        if find_spec("psycopg") is None:
            raise BadInput("psycopg is not installed (--storage postgresql://...): pip install 'resfit[postgres]'")
        url = f"postgresql+psycopg://{rest}"
    for _ in range(_TABLE_MAKERS):
        try:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):  # another process makes the tables at this moment
            time.sleep(1)
    return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def _mend(path: Path) -> None:
    """Drop a last line that a killed process left half written: nothing could be read past it.

    Raises BadInput for a file of another kind: nothing may be written to it.
    """
    if not path.exists():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        if not content.startswith(_JOURNAL[: len(content)]):
            raise BadInput(f"not a journal of trials ({path}): give another --storage; a database as sqlite:///{path}")
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _check_identity(study: optuna.Study, search: Search) -> None:
    now, then = search.identity(), study.user_attrs.get("search")
    if then is None:
        study.set_user_attr("search", now)
    elif changed := [name for name in now if to_plain(now[name]) != then[name]]:
        what = ", ".join(changed)
        raise BadInput(
            f"another search exists already ({search.place}: {what} changed): give another --out or --storage"
        )


def _orphans(study: optuna.Study) -> Iterator[FrozenTrial]:
    """Trials under way whose process on this machine is gone, or was killed before it gave its name."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = str(trial.user_attrs.get("process", "")).rpartition(":")
        if not pid:
            if trial.datetime_start is None or datetime.now() - trial.datetime_start > _UNNAMED:
                yield trial
        elif host == socket.gethostname() and (int(pid) == os.getpid() or not is_alive(int(pid))):
            yield trial


def _count(study: optuna.Study, under_way: bool = False) -> int:
    """Trials that were trained; with `under_way` also those that are being trained."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, *((TrialState.RUNNING,) if under_way else ()))
    found = study.get_trials(deepcopy=False, states=states)
    return sum("refused" not in trial.user_attrs for trial in found)


def _work_in_parallel(search: Search, trials: int, workers: int) -> None:
    pipes = [Pipe(duplex=False) for _ in range(workers)]
    children: list[BaseProcess] = []
    try:
        for device, (_, tells) in zip(spread(search.device, workers), pipes, strict=True):
            own = replace(search, device=device)
            children.append(processes.start(_worker, own, trials, tells, share=workers))
        for child in children:
            child.join()
    finally:
        processes.interrupt(children)
    for hears, tells in pipes:
        tells.close()
        if error := _last_word(hears):
            raise error
    if broken := [child.exitcode for child in children if child.exitcode]:
        raise RunFailed(f"a process of the search ended with status {broken[0]}: repeat the command to go on")


def _last_word(hears: Connection) -> ResfitError | None:
    """The error that a process sent before it ended."""
    try:
        error: ResfitError = hears.recv()
    except (EOFError, OSError):  # it was killed, in the middle of a word perhaps
        return None
    return error


def _work_on(cluster: OnRay, search: Search, trials: int) -> None:
    """A thread for each trial that the cluster holds at a time; asking and telling stays here, training goes there."""
    pool: ThreadPoolExecutor | None = None
    try:
        with cluster:
            pool = ThreadPoolExecutor(cluster.slots)
            threads = [pool.submit(_work, search, trials, cluster.validation_curve) for _ in range(cluster.slots)]
            for ended in as_completed(threads):
                ended.result()
    finally:  # what the cluster did not end was given up, and its trial is marked as failed
        if pool is not None:
            pool.shutdown()


def _worker(search: Search, trials: int, tells: Connection) -> None:
    try:
        _work(search, trials)
    except ResfitError as error:
        tells.send(sendable(error))


def _work(search: Search, trials: int, train: Fit | None = None) -> None:
    """Trial after trial, trained by `train` or here, until enough are trained or under way."""
    study, refusals = _open(search), 0
    while (trial := _next(study, trials, search.seed)) is not None:
        with _failing(study, trial):
            drawn = {path: _draw(trial, path, dimension) for path, dimension in search.space.dimensions.items()}
            reason = _refusal(search, trial, drawn)
            if reason is None:
                line = _train(search, study, trial, drawn, train or search.validation_curve)
                refusals = 0
            else:
                trial.set_user_attr("refused", reason)
                study.tell(trial, state=TrialState.PRUNED)
                line, refusals = f"refused, {reason}", refusals + 1
        say(f"trial {trial.number}: {line} ({_count(study)} of {trials} trained)")
        if refusals >= _REFUSALS:
            raise RunFailed(
                f"{refusals} trials in a row were refused (the last: {reason}): narrow the space, or raise the budget"
            )


def _next(study: optuna.Study, trials: int, seed: int) -> optuna.Trial | None:
    """A new trial, with draws of its own whichever process began it; None where there are enough."""
    with _ASKING:
        if _count(study, under_way=True) >= trials:
            return None
        trial = study.ask()
        trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
        draws = np.random.SeedSequence([seed, trial.number]).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=int(draws[0]))
        return trial


@contextmanager
def _failing(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
    """Mark the trial as failed where an error, or Ctrl-C, ends the block."""
    try:
        yield
    except BaseException:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise


def _draw(trial: optuna.Trial, path: str, dimension: Dimension) -> Any:
    if dimension.choices:
        return trial.suggest_categorical(path, dimension.labels)
    assert dimension.low is not None and dimension.high is not None
    if dimension.whole:
        step = int(dimension.step or 1)
        return trial.suggest_int(path, int(dimension.low), int(dimension.high), step=step, log=dimension.log)
    return trial.suggest_float(path, dimension.low, dimension.high, step=dimension.step, log=dimension.log)


def _refusal(search: Search, trial: optuna.Trial, drawn: dict[str, Any]) -> str | None:
    """Why the trial cannot be trained, known before anything is built; None where it can.

    The excess over the budget, as a fraction of it, is the constraint that TPE learns from.
    """
    try:
        recipe = search.trial_recipe(drawn)
    except BadInput as error:
        trial.set_constraint("budget", 1.0)
        return str(error)
    verdict = judge(recipe.spec, recipe.budget)
    trial.set_user_attr("params", verdict.params)
    trial.set_constraint("budget", verdict.params / verdict.budget - 1)
    return None if verdict.fits else str(verdict)


class _Reporter(Observer):
    """Hands a trial's validation accuracies to Optuna, and ends the trial where they are hopeless."""

    def __init__(self, search: Search, study: optuna.Study, trial: optuna.Trial) -> None:
        self.search, self.study, self.trial = search, study, trial
        self.epoch = self.epochs = 0

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Keep what the trials are trained on; raises BadInput where earlier ones saw other images."""
        self.epochs = recipe.train.epochs
        seen = self.study.user_attrs.get("data")
        searched = any(path.startswith("data.") for path in self.search.space.dimensions)
        if seen and seen["digest"] != data.digest and not searched:
            where = self.search.place
            raise BadInput(f"earlier trials were trained on other images ({where}): give another --out or --storage")
        if seen is None:
            sizes = {"n_train": len(data.train), "n_val": len(data.val), "n_test": 0}
            self.study.set_user_attr("data", {"name": data.name, "digest": data.digest, **sizes, "note": note})

    def epoch_ended(self, point: EpochPoint) -> None:
        """Raise TrialPruned where the median trial was better at this epoch; after the last one it is too late."""
        self.epoch = point.epoch
        if point.val_accuracy is not None:
            self.trial.report(point.val_accuracy, point.epoch)
            if point.epoch < self.epochs and self.trial.should_prune():
                raise optuna.TrialPruned


def _train(search: Search, study: optuna.Study, trial: optuna.Trial, drawn: dict[str, Any], train: Fit) -> str:
    """Train one trial, and say how it ended. Settings that diverge, or that memory is too small for, are no good."""
    recipe, reporter, began = search.trial_recipe(drawn), _Reporter(search, study, trial), time.perf_counter()
    try:
        curve = train(recipe, search.seed, reporter)
    except optuna.TrialPruned:
        state, accuracy, line = TrialState.PRUNED, None, f"given up after epoch {reporter.epoch}"
    except (RunFailed, torch.OutOfMemoryError) as error:
        trial.set_user_attr("diverged", " ".join(str(error).split()))
        state, accuracy, line = TrialState.PRUNED, None, f"came to nothing: {error}"
    else:
        values = [point.val_accuracy for point in curve if point.val_accuracy is not None]
        accuracy = values[-1] if recipe.evaluate.selection == "last" else max(values)
        state, line = TrialState.COMPLETE, f"{100 * accuracy:.2f} % validation"
    seconds = time.perf_counter() - began
    trial.set_user_attr("seconds", seconds)
    study.tell(trial, accuracy, state=state)
    return f"{line}, {cost(recipe.spec).params:,} parameters, {seconds:.1f} s"


def _trial_record(trial: FrozenTrial, search: Search) -> TrialRecord:
    attributes = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        outcome=_outcome(trial),
        values={path: search.space.dimensions[path].value(drawn) for path, drawn in trial.params.items()},
        params=attributes.get("params"),
        accuracy=trial.value if trial.state == TrialState.COMPLETE else None,
        curve=tuple(sorted(trial.intermediate_values.items())),
        seconds=attributes.get("seconds"),
        note=attributes.get("refused") or attributes.get("diverged") or "",
    )


def _outcome(trial: FrozenTrial) -> Outcome:
    if trial.state == TrialState.PRUNED:
        return (
            "refused" if "refused" in trial.user_attrs else "diverged" if "diverged" in trial.user_attrs else "pruned"
        )
    outcomes: dict[TrialState, Outcome] = {TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}
    return outcomes.get(trial.state, "running")


def _importance(study: optuna.Study) -> dict[str, float]:
    """Each field's share of the accuracy's variance among complete trials (fANOVA, Hutter et al. 2014)."""
    values = [trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    if len(values) < _FEWEST or len(set(values)) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
