"""Run many jobs with an executor: skip finished runs, resume unfinished ones, and continue when one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from resfit.checkpoint import STATE, has_state, load_state
from resfit.data import has_validation, load_dataset
from resfit.errors import BadInput
from resfit.executors.local import Executor, RunOptions
from resfit.observer import Observer
from resfit.pretrained import model_sha256
from resfit.recipe import DataConfig, Recipe
from resfit.record import EpochPoint, RunRecord, is_finished, read_record, settings
from resfit.run import run_folder
from resfit.spec import InputSpec
from resfit.studyrecord import FailedRun, JudgedBy


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a recipe and a seed. In a study, the recipe is named after its point."""

    recipe: Recipe
    seed: int

    def __str__(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}"


class Watcher:
    """Callbacks for the progress of many runs, possibly called from several threads. The default does nothing."""

    def planned(self, jobs: Sequence[Job], done: Sequence[RunRecord], judged_by: JudgedBy) -> None:
        """Called before the first run: `jobs` will be run, `done` were finished before."""

    def epoch_ended(self, job: Job, point: EpochPoint) -> None:
        """Called after each epoch of a run."""

    def finished(self, job: Job, record: RunRecord) -> None:
        """Called when a run has finished and written its record."""

    def failed(self, job: Job, error: str) -> None:
        """Called when a run has failed; the others continue."""

    def message(self, text: str, job: Job | None = None) -> None:
        """Called with one line of text for the user, from a run or, without `job`, from before the first one."""


class _RunObserver(Observer):
    """Observer that passes a run's epochs and messages to a watcher, together with the job."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        self.job, self.watcher = job, watcher

    def epoch_ended(self, point: EpochPoint) -> None:
        """Pass the epoch on."""
        self.watcher.epoch_ended(self.job, point)

    def message(self, text: str) -> None:
        """Pass the message on."""
        self.watcher.message(text, self.job)


def run_jobs(
    jobs: Sequence[Job], executor: Executor, watcher: Watcher | None, failed: list[FailedRun]
) -> list[RunRecord]:
    """Run the unfinished `jobs`; return the records of all finished ones, in the order of `jobs`.

    Runs that fail are added to `failed`, also when an interrupt ends the others. A run that another process has
    finished meanwhile counts as finished. Raises BadInput, before any run starts, if data cannot be used, or if the
    executor's folder holds runs with other settings, on other images, or from other initial weights.
    """
    watcher, out = watcher or Watcher(), executor.options.out
    for job in jobs:
        _check_folder(run_folder(out, job.recipe, job.seed), job.recipe)
    records = _finished(jobs, out)
    todo = [job for job in jobs if str(job) not in records]
    _check_weights(executor.options, records.values(), todo)
    _check_images(executor.options, records.values(), todo, watcher.message)
    watcher.planned(todo, list(records.values()), judged_by(jobs, executor.options))
    if todo:
        with executor:
            wait([_submitted(executor, job, watcher, records, failed) for job in todo])
    records |= _finished([job for job in todo if str(job) not in records], out)
    finished = {(record.recipe, record.seed) for record in records.values()}
    failed[:] = [run for run in failed if (run.point, run.seed) not in finished]
    failed.sort(key=lambda run: (run.point, run.seed))
    return [records[str(job)] for job in jobs if str(job) in records]


def judged_by(jobs: Sequence[Job], options: RunOptions) -> JudgedBy:
    """Return which split the jobs can be compared on: validation if all have the same validation images, else test."""
    sets = {job.recipe.data for job in jobs}
    brought = all(has_validation(replace(data, val=0), options.data_dir) for data in sets)  # by the folder
    drawn = len({(data.val, data.split_seed) for data in sets}) == 1
    alike = (brought or drawn) and all(has_validation(data, options.data_dir) for data in sets)
    return "validation" if alike else "test"


def _submitted(
    executor: Executor, job: Job, watcher: Watcher, records: dict[str, RunRecord], failed: list[FailedRun]
) -> Future[RunRecord]:
    """Submit the job; when it ends, its result is added to `records` or `failed`."""

    def ended(future: Future[RunRecord]) -> None:
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or isinstance(error, CancelledError):
            return
        if error:
            failed.append(FailedRun(point=job.recipe.name, seed=job.seed, error=" ".join(str(error).split())))
            watcher.failed(job, failed[-1].error)
        else:
            records[str(job)] = future.result()
            watcher.finished(job, future.result())

    future = executor.submit(job.recipe, job.seed, _RunObserver(job, watcher))
    future.add_done_callback(ended)
    return future


def finished_runs(jobs: Sequence[Job], out: Path) -> list[RunRecord]:
    """Return the records of the finished `jobs` in `out`, in order."""
    return list(_finished(jobs, out).values())


def _finished(jobs: Sequence[Job], out: Path) -> dict[str, RunRecord]:
    folders = {str(job): run_folder(out, job.recipe, job.seed) for job in jobs}
    return {job: read_record(folder) for job, folder in folders.items() if is_finished(folder)}


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """Raise BadInput if the folder holds a run with other settings, whose result would be mistaken for this one."""
    if not (folder / "recipe.yaml").exists():
        return
    then, now = settings(Recipe.from_yaml(folder / "recipe.yaml").to_dict()), settings(recipe.to_dict())
    if recipe.data.name == "folder":  # the number of classes is taken from the images
        now["spec"]["num_classes"] = then["spec"]["num_classes"]
    names = {**now, **then}  # a section may be missing in one of them
    if changed := sorted(name for name in names if now.get(name) != then.get(name)):
        raise BadInput(f"a run with other settings already exists ({folder}: {', '.join(changed)}): give another --out")


def _check_weights(options: RunOptions, finished: Iterable[RunRecord], todo: Sequence[Job]) -> None:
    """Raise BadInput if a finished or unfinished run did not start from the weights that `--init` gives."""
    begins = model_sha256(options.init) if options.init else None
    began = {_folder(options.out, record): record.init and record.init.sha256 for record in finished}
    for folder in [run_folder(options.out, job.recipe, job.seed) for job in todo]:
        if has_state(folder):
            with suppress(BadInput):  # damaged checkpoint: its run sets it aside and reports it
                init = load_state(folder / STATE)["init"]
                began[folder] = init and init["sha256"]
    for folder, weights in began.items():
        if weights != begins:
            raise BadInput(f"a run from other weights already exists ({folder}): give another --out")


def _check_images(
    options: RunOptions, finished: Iterable[RunRecord], todo: Sequence[Job], tell: Callable[[str], None]
) -> None:
    """Load each data set once, so that unusable data fails before any run; raise BadInput for runs on other images."""
    digests: dict[tuple[DataConfig, InputSpec], str] = {}
    for job in todo:
        _digest(options, job.recipe, digests, tell)
    for record in finished:
        recipe = Recipe.from_dict(record.config)
        if recipe.data.name == "folder" and _digest(options, recipe, digests, tell) != record.data["digest"]:
            raise BadInput(f"a run on other images already exists ({_folder(options.out, record)}): give another --out")


def _folder(out: Path, record: RunRecord) -> Path:
    return out / record.recipe / str(record.seed)


def _digest(
    options: RunOptions, recipe: Recipe, known: dict[tuple[DataConfig, InputSpec], str], tell: Callable[[str], None]
) -> str:
    """Return the digest of the recipe's images; if it is not `known`, load them, which downloads them for all runs."""
    data, images = recipe.data, recipe.spec.input
    if data.name != "folder":  # any split and size of a named data set comes from the same files
        data = DataConfig(name=data.name, val=0)
        images = InputSpec(channels=images.channels)
    if (data, images) not in known:
        known[data, images] = load_dataset(
            data,
            size=images.size,
            channels=images.channels,
            data_dir=options.data_dir,
            offline=options.offline,
            progress=tell,
        ).digest
    return known[data, images]
