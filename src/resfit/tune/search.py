"""The search: Optuna's TPE samples settings, trials train on the training split and are judged on the validation split.

A trial's parameters are counted before anything is built; a trial over the budget is refused at no cost and reported to
TPE as a violated constraint. Trials are kept in a journal file or a database, from which a search can be resumed and
which several processes can share.
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

_REFUSALS = 100  # maximum in a row: almost nothing in the space fits the budget
_STARTUP = 5  # complete trials required before any trial is pruned
_FEWEST = 4  # complete trials required to compute importances
_UNTOUCHED = 5  # a trial is not pruned in the first 1 / _UNTOUCHED of its epochs
_TABLE_MAKERS = 5  # attempts to open a database whose tables other processes may be creating
_UNNAMED = timedelta(minutes=1)  # time allowed for a new trial's process to register its name
_JOURNAL = b'{"op_code":'  # start of each line of a journal file
_ASKING = threading.Lock()  # threads start trials one at a time, so that they do not start too many


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to search, and where its trials are stored: the path of a journal file or the URL of a database.

    With `epochs` and `fraction`, trials train a scaled-down `recipe`; the best recipe is given at full length.
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
            raise BadInput("a search must not use the test set (evaluate.selection): give last or best-val")
        self.space.check(self.recipe)

    @property
    def place(self) -> str:
        """Where the trials are stored, without a password."""
        return without_password(self.storage.rpartition("@")[2])

    @property
    def varies_data(self) -> bool:
        """Whether trials differ in their data."""
        return any(path.startswith("data.") for path in self.space.dimensions)

    def trial_recipe(self, drawn: dict[str, Any]) -> Recipe:
        """Return the recipe that a trial trains; raises BadInput if the values are incompatible."""
        factor = 1.0 if self.epochs is None else self.epochs / self.recipe.train.epochs
        return scaled(self.space.apply(self.recipe, drawn), factor, self.fraction)

    def best_recipe(self, drawn: dict[str, Any]) -> Recipe:
        """Return the full-length recipe with a trial's values."""
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
        """Return what must be the same in every call, as trials could not be compared otherwise."""
        scale = {"epochs": self.epochs, "fraction": self.fraction}
        return {"recipe": settings(self.recipe.to_dict()), "space": self.space.to_dict(), **scale, "seed": self.seed}

    def require_own(self, folder: Path) -> None:
        """Raise BadInput if `folder` holds the results of another search, which would be overwritten."""
        if not (folder / "tune.json").exists():
            return
        then = read_search(folder)
        was = {"recipe": settings(then.config), "space": then.space, "epochs": then.epochs, "fraction": then.fraction}
        now = to_plain({**self.identity(), "epochs": self.epochs or self.recipe.train.epochs})
        if changed := [name for name, value in {**was, "seed": then.seed}.items() if now[name] != value]:
            what = ", ".join(changed)
            raise BadInput(f"another search already exists ({folder}: {what} changed): give another --out")


def say(line: str) -> None:
    """Print a line to stderr and flush."""
    print(line, file=sys.stderr, flush=True)


def run_search(search: Search, trials: int, *, workers: int = 1, cluster: OnRay | None = None) -> TuneRecord:
    """Train until `trials` trials are done, in `workers` processes or on a Ray cluster; print one line per trial.

    Trials whose process is gone are marked as failed. Raises BadInput if the storage holds another search, RunFailed if
    almost nothing in the space fits the budget.
    """
    study = _open(search)
    _check_identity(study, search)
    for trial in _orphans(study):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        say(f"trial {trial.number}: failed, its process no longer exists")
    workers = min(workers, max(trials - _count(study), 1))
    if cluster is not None and _count(study) < trials:
        _work_on(cluster, search, trials)
    elif workers == 1:
        _work(search, trials)
    else:
        _work_in_parallel(search, trials, workers)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        where = trial.user_attrs.get("process", "another process")
        say(
            f"trial {trial.number}: still running in {where}; if that process no longer exists, ask for one more "
            "trial (--trials)"
        )
    return record(search)


def record(search: Search) -> TuneRecord:
    """Return the record of the search so far."""
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
    """Return the study in the search's storage; create it if there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _database(search.storage) if "://" in search.storage else _journal(Path(search.storage))
        study = optuna.create_study(
            storage=storage, study_name=search.recipe.name, direction="maximize", load_if_exists=True
        )
    except BadInput:
        raise
    except Exception as error:  # depends on the database
        reason = without_password(f"{type(error).__name__}: {str(error).strip()}")
        raise BadInput(f"cannot store trials ({search.place}): {reason}") from None
    epochs = search.epochs or search.recipe.train.epochs
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=epochs // _UNTOUCHED)
    return study


def _journal(path: Path) -> BaseStorage:
    path = path.resolve()  # the lock is a symbolic link, which would not resolve from a relative path
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend(path)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


@cache
def _database(url: str) -> BaseStorage:
    """Return the storage in a database; all threads share its connections. PostgreSQL is accessed through psycopg."""
    kind, _, rest = url.partition("://")
    if kind == "postgresql":
        if find_spec("psycopg") is None:
            raise BadInput("psycopg is not installed (--storage postgresql://...): pip install 'resfit[postgres]'")
        url = f"postgresql+psycopg://{rest}"
    for _ in range(_TABLE_MAKERS):
        try:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):  # another process is creating the tables
            time.sleep(1)
    return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def _mend(path: Path) -> None:
    """Remove an incomplete last line, written by a process that was killed: it would make the journal unreadable.

    Raises BadInput for a file that is not a journal, as nothing may be written to it.
    """
    if not path.exists():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        if not content.startswith(_JOURNAL[: len(content)]):
            raise BadInput(
                f"not a journal of trials ({path}): give another --storage, or a database as sqlite:///{path}"
            )
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
            f"another search already exists ({search.place}: {what} changed): give another --out or --storage"
        )


def _orphans(study: optuna.Study) -> Iterator[FrozenTrial]:
    """Yield running trials whose process on this machine is gone, or was killed before it registered its name."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = str(trial.user_attrs.get("process", "")).rpartition(":")
        if not pid:
            if trial.datetime_start is None or datetime.now() - trial.datetime_start > _UNNAMED:
                yield trial
        elif host == socket.gethostname() and (int(pid) == os.getpid() or not is_alive(int(pid))):
            yield trial


def _count(study: optuna.Study, under_way: bool = False) -> int:
    """Return the number of trained trials; with `under_way`, also count those in training."""
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
        raise RunFailed(
            f"a process of the search ended with status {broken[0]}: run the same command again to continue"
        )


def _last_word(hears: Connection) -> ResfitError | None:
    """Return the error that a process sent before it ended, if any."""
    try:
        error: ResfitError = hears.recv()
    except (EOFError, OSError):  # it was killed, possibly while sending
        return None
    return error


def _work_on(cluster: OnRay, search: Search, trials: int) -> None:
    """Run one thread per trial that fits on the cluster: sampling and reporting happen here, training there."""
    pool: ThreadPoolExecutor | None = None
    try:
        with cluster:
            pool = ThreadPoolExecutor(cluster.slots)
            threads = [pool.submit(_work, search, trials, cluster.validation_curve) for _ in range(cluster.slots)]
            for ended in as_completed(threads):
                ended.result()
    finally:  # runs that had not ended were cancelled; their threads mark the trials as failed
        if pool is not None:
            pool.shutdown()


def _worker(search: Search, trials: int, tells: Connection) -> None:
    try:
        _work(search, trials)
    except ResfitError as error:
        tells.send(sendable(error))


def _work(search: Search, trials: int, train: Fit | None = None) -> None:
    """Run trials one after the other, trained by `train` or in this process, until enough are trained or running."""
    study, refusals = _open(search), 0
    while (trial := _next(study, trials, search.seed)) is not None:
        with _failing(study, trial):
            drawn = {path: _draw(trial, path, dimension) for path, dimension in search.space.dimensions.items()}
            reason = _refusal(search, trial, drawn)
            if reason is None:
                try:
                    line, refusals = _train(search, study, trial, drawn, train or search.validation_curve), 0
                except BadInput as error:
                    if not search.varies_data:
                        raise
                    reason = str(error)  # the data cannot serve this draw
            if reason is not None:
                trial.set_user_attr("refused", reason)
                study.tell(trial, state=TrialState.PRUNED)
                line, refusals = f"refused, {reason}", refusals + 1
        say(f"trial {trial.number}: {line} ({_count(study)} of {trials} trained)")
        if refusals >= _REFUSALS:
            raise RunFailed(
                f"{refusals} trials in a row were refused (the last: {reason}): narrow the space, or raise the budget"
            )


def _next(study: optuna.Study, trials: int, seed: int) -> optuna.Trial | None:
    """Start a new trial, sampled independently of the process that starts it; None if there are enough."""
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
    """Mark the trial as failed if an exception, or Ctrl-C, ends the block."""
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
    """Return why the trial cannot be trained, before anything is built; None if it can.

    The relative excess over the budget is the constraint that TPE learns from.
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
    """Observer that reports validation accuracies to Optuna and prunes hopeless trials."""

    def __init__(self, search: Search, study: optuna.Study, trial: optuna.Trial) -> None:
        self.search, self.study, self.trial = search, study, trial
        self.epoch = self.epochs = 0

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Store which data the trials are trained on; raises BadInput if earlier trials used other images."""
        self.epochs = recipe.train.epochs
        seen = self.study.user_attrs.get("data")
        if seen and seen["digest"] != data.digest and not self.search.varies_data:
            where = self.search.place
            raise BadInput(f"earlier trials were trained on other images ({where}): give another --out or --storage")
        if seen is None:
            sizes = {"n_train": len(data.train), "n_val": len(data.val), "n_test": 0}
            self.study.set_user_attr("data", {"name": data.name, "digest": data.digest, **sizes, "note": note})

    def message(self, text: str) -> None:
        """Print the message."""
        say(f"trial {self.trial.number}: {text}")

    def epoch_ended(self, point: EpochPoint) -> None:
        """Raise TrialPruned if Optuna's median pruner says so, except after the last epoch."""
        self.epoch = point.epoch
        if point.val_accuracy is not None:
            self.trial.report(point.val_accuracy, point.epoch)
            if point.epoch < self.epochs and self.trial.should_prune():
                raise optuna.TrialPruned


def _train(search: Search, study: optuna.Study, trial: optuna.Trial, drawn: dict[str, Any], train: Fit) -> str:
    """Train one trial and return how it ended; trials that diverge or run out of memory count as pruned."""
    recipe, reporter, began = search.trial_recipe(drawn), _Reporter(search, study, trial), time.perf_counter()
    try:
        curve = train(recipe, search.seed, reporter)
    except optuna.TrialPruned:
        state, accuracy, line = TrialState.PRUNED, None, f"stopped early after epoch {reporter.epoch}"
    except (RunFailed, torch.OutOfMemoryError) as error:
        trial.set_user_attr("diverged", " ".join(str(error).split()))
        state, accuracy, line = TrialState.PRUNED, None, f"failed: {error}"
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
    """Return each field's share of the accuracy's variance among complete trials (fANOVA, Hutter et al. 2014)."""
    values = [trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    if len(values) < _FEWEST or len(set(values)) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
