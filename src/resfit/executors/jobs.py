"""Many runs: what is finished stays, what is unfinished goes on, what fails is told and the others run."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

from resfit.data import has_validation
from resfit.errors import BadInput
from resfit.executors.local import Executor, Place
from resfit.observer import Observer
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord, read_record, settings
from resfit.run import run_folder
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
    watcher, out = watcher or Watcher(), executor.place.out
    for job in jobs:
        _check_folder(run_folder(out, job.recipe, job.seed), job.recipe)
    records = _finished(jobs, out)
    todo = [job for job in jobs if str(job) not in records]
    executor.place.check(list(records.values()), [(job.recipe, job.seed) for job in todo])
    watcher.planned(todo, list(records.values()), judged_by(jobs, executor.place))
    failed: list[FailedRun] = []
    if todo:
        with executor:
            wait([_submitted(executor, job, watcher, records, failed) for job in todo])
    failed.sort(key=lambda run: (run.point, run.seed))
    return [records[str(job)] for job in jobs if str(job) in records], failed


def judged_by(jobs: Sequence[Job], place: Place) -> JudgedBy:
    """On what all of the jobs can be compared: on validation images where all have the same."""
    sets = {job.recipe.data for job in jobs}
    brought = all(has_validation(replace(data, val=0), place.data_dir) for data in sets)  # by the image folder
    drawn = len({(data.val, data.split_seed) for data in sets}) == 1
    alike = (brought or drawn) and all(has_validation(data, place.data_dir) for data in sets)
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
