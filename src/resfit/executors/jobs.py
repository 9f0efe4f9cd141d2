"""Many runs: what is finished stays, what is unfinished goes on, what fails is told and the others run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from resfit.record import EpochPoint, RunRecord, read_record, settings
from resfit.run import run_folder
from resfit.spec import InputSpec
from resfit.studyrecord import FailedRun, JudgedBy


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a recipe, called after its point where it belongs to a study, and a seed."""

    recipe: Recipe
    seed: int

    def __str__(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}"


class Watcher:
    """What many runs tell while they go on, from several threads where several go on at once. The default is silent."""

    def planned(self, jobs: Sequence[Job], done: Sequence[RunRecord], judged_by: JudgedBy) -> None:
        """`jobs` are about to be run; `done` were finished before."""

    def epoch_ended(self, job: Job, point: EpochPoint) -> None:
        """An epoch of a run was trained."""

    def finished(self, job: Job, record: RunRecord) -> None:
        """A run left its record."""

    def failed(self, job: Job, error: str) -> None:
        """A run failed; the others go on."""


class _RunObserver(Observer):
    """Hands on a run's epochs with the job that they belong to."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        self.job, self.watcher = job, watcher

    def epoch_ended(self, point: EpochPoint) -> None:
        """Handed on."""
        self.watcher.epoch_ended(self.job, point)


def run_jobs(
    jobs: Sequence[Job], executor: Executor, watcher: Watcher | None = None
) -> tuple[list[RunRecord], list[FailedRun]]:
    """Run those of `jobs` that are not finished; the records of all that are now, in the jobs' order, and what failed.

    Raises BadInput, ahead of any run, for data that cannot be used, and where the executor's folder holds runs of other
    settings, on other images, or from other weights.
    """
    watcher, out = watcher or Watcher(), executor.options.out
    for job in jobs:
        _check_folder(run_folder(out, job.recipe, job.seed), job.recipe)
    records = _finished(jobs, out)
    todo = [job for job in jobs if str(job) not in records]
    _check_weights(executor.options, records.values(), todo)
    _check_images(executor.options, records.values(), todo)
    watcher.planned(todo, list(records.values()), judged_by(jobs, executor.options))
    failed: list[FailedRun] = []
    if todo:
        with executor:
            wait([_submitted(executor, job, watcher, records, failed) for job in todo])
    failed.sort(key=lambda run: (run.point, run.seed))
    return [records[str(job)] for job in jobs if str(job) in records], failed


def judged_by(jobs: Sequence[Job], options: RunOptions) -> JudgedBy:
    """On what all of the jobs can be compared: on validation images where all have the same."""
    sets = {job.recipe.data for job in jobs}
    brought = all(has_validation(replace(data, val=0), options.data_dir) for data in sets)  # by the image folder
    drawn = len({(data.val, data.split_seed) for data in sets}) == 1
    alike = (brought or drawn) and all(has_validation(data, options.data_dir) for data in sets)
    return "validation" if alike else "test"


def _submitted(
    executor: Executor, job: Job, watcher: Watcher, records: dict[str, RunRecord], failed: list[FailedRun]
) -> Future[RunRecord]:
    """The job's run, whose end goes into `records` or `failed`."""

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
    """The records that `jobs` have left in `out` so far, in their order."""
    return list(_finished(jobs, out).values())


def _finished(jobs: Sequence[Job], out: Path) -> dict[str, RunRecord]:
    folders = {str(job): run_folder(out, job.recipe, job.seed) for job in jobs}
    return {job: read_record(folder) for job, folder in folders.items() if (folder / "record.json").exists()}


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder whose run had other settings: its result would stand for something that it is not."""
    if not (folder / "recipe.yaml").exists():
        return
    then, now = settings(Recipe.from_yaml(folder / "recipe.yaml").to_dict()), settings(recipe.to_dict())
    if recipe.data.name == "folder":  # a run takes its number of classes from the images
        now["spec"]["num_classes"] = then["spec"]["num_classes"]
    names = {**now, **then}  # a section may stand in one of them alone
    if changed := sorted(name for name in names if now.get(name) != then.get(name)):
        raise BadInput(f"a run with other settings exists already ({folder}: {', '.join(changed)}): give another --out")


def _check_weights(options: RunOptions, finished: Iterable[RunRecord], todo: Sequence[Job]) -> None:
    """Refuse runs that began, or ended, with other weights than `--init` gives."""
    begins = model_sha256(options.init) if options.init else None
    began = {_folder(options.out, record): record.init and record.init.sha256 for record in finished}
    for folder in [run_folder(options.out, job.recipe, job.seed) for job in todo]:
        if has_state(folder):
            with suppress(BadInput):  # a damaged one: its run sets it aside, and says so
                init = load_state(folder / STATE)["init"]
                began[folder] = init and init["sha256"]
    for folder, weights in began.items():
        if weights != begins:
            raise BadInput(f"a run from other weights exists already ({folder}): give another --out")


def _check_images(options: RunOptions, finished: Iterable[RunRecord], todo: Sequence[Job]) -> None:
    """Load each data set once, so that what cannot be used is told ahead of all runs; refuse runs on other images."""
    digests: dict[tuple[DataConfig, InputSpec], str] = {}
    for job in todo:
        _digest(options, job.recipe, digests)
    for record in finished:
        recipe = Recipe.from_dict(record.config)
        if recipe.data.name == "folder" and _digest(options, recipe, digests) != record.data["digest"]:
            raise BadInput(f"a run on other images exists already ({_folder(options.out, record)}): give another --out")


def _folder(out: Path, record: RunRecord) -> Path:
    return out / record.recipe / str(record.seed)


def _digest(options: RunOptions, recipe: Recipe, known: dict[tuple[DataConfig, InputSpec], str]) -> str:
    """That of the recipe's images, which are loaded where it is not `known`, and downloaded once for all runs."""
    data, images = recipe.data, recipe.spec.input
    if data.name != "folder":  # splits and sizes of a set that has a name are there with it
        data = DataConfig(name=data.name, val=0)
        images = InputSpec(channels=images.channels)
    if (data, images) not in known:
        known[data, images] = load_dataset(
            data, size=images.size, channels=images.channels, data_dir=options.data_dir, offline=options.offline
        ).digest
    return known[data, images]
