"""Runs what a study still lacks, and writes down what its runs say: study.json and one report page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.files import write_atomic
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord, read_record
from resfit.report.study import write_study
from resfit.run import Observer, run_folder
from resfit.study.executor import Executor
from resfit.study.plan import Study
from resfit.studyrecord import FailedRun, JudgedBy, PointRecord, StudyRecord, against_baseline, summarize_point
from resfit.version import __version__


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a study: the recipe of the point that it is called after, and a seed."""

    recipe: Recipe
    seed: int

    def __str__(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}"


class Watcher:
    """What a study tells while it goes on, from several threads where several runs go on. The default is silent."""

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


def execute(
    study: Study,
    recipes: Mapping[str, Recipe],
    executor: Executor,
    out: Path,
    *,
    seeds: int,
    watcher: Watcher | None = None,
) -> StudyRecord:
    """Run `recipes`, the study's points, each with the seeds 0 ... `seeds` - 1, in `out`, the folder of the study.

    Finished runs are taken as they are, unfinished ones go on, failed ones are reported and the others run. Raises
    BadInput where `out` holds runs of other settings. `executor` has to put its run folders into `out`.
    """
    watcher = watcher or Watcher()
    jobs = [Job(recipe=recipe, seed=seed) for seed in range(seeds) for recipe in recipes.values()]
    for job in jobs:
        _check_folder(run_folder(out, job.recipe, job.seed), job.recipe)
    records = {str(job): record for job in jobs if (record := _finished(out, job)) is not None}
    judged_by: JudgedBy = "validation" if all(recipe.data.val > 0 for recipe in recipes.values()) else "test"
    todo = [job for job in jobs if str(job) not in records]
    watcher.planned(todo, list(records.values()), judged_by)
    failed: list[FailedRun] = []
    with executor:
        wait([_submitted(executor, job, watcher, records, failed) for job in todo])
    runs = [records[str(job)] for job in jobs if str(job) in records]
    points = _points(study, recipes, runs, judged_by)
    result = StudyRecord(
        resfit=__version__,
        study=study.name,
        description=study.description,
        recipe=study.recipe,
        baseline=study.baseline,
        judged_by=judged_by,
        epochs=recipes[study.baseline].train.epochs,
        fraction=recipes[study.baseline].data.fraction,
        wanted=len(jobs),
        points=against_baseline(points, study.baseline),
        failed=tuple(sorted(failed, key=lambda run: (run.point, run.seed))),
    )
    write_atomic(out / "study.json", json.dumps(result.to_dict(), indent=1))
    write_study(result, runs, out / "report.html")
    return result


def _submitted(
    executor: Executor, job: Job, watcher: Watcher, records: dict[str, RunRecord], failed: list[FailedRun]
) -> Future[RunRecord]:
    """The job's run, whose end goes into `records` or `failed`."""

    def ended(future: Future[RunRecord]) -> None:
        if future.cancelled():
            return
        if error := future.exception():
            failed.append(FailedRun(point=job.recipe.name, seed=job.seed, error=" ".join(str(error).split())))
            watcher.failed(job, failed[-1].error)
        else:
            records[str(job)] = future.result()
            watcher.finished(job, future.result())

    future = executor.submit(job.recipe, job.seed, _RunObserver(job, watcher))
    future.add_done_callback(ended)
    return future


def _finished(out: Path, job: Job) -> RunRecord | None:
    folder = run_folder(out, job.recipe, job.seed)
    return read_record(folder) if (folder / "record.json").exists() else None


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder whose run had other settings: its result would stand for something that it is not."""
    if not (folder / "recipe.yaml").exists():
        return
    then, now = Recipe.from_yaml(folder / "recipe.yaml").to_dict(), recipe.to_dict()
    if recipe.data.name == "folder":  # a run takes its number of classes from the images
        now["spec"]["num_classes"] = then["spec"]["num_classes"]
    if changed := [name for name in now if name not in ("description", "deviations") and now[name] != then[name]]:
        raise BadInput(f"a run with other settings lies there ({folder}: {', '.join(changed)}): give another --out")


def _points(
    study: Study, recipes: Mapping[str, Recipe], runs: Sequence[RunRecord], judged_by: JudgedBy
) -> list[PointRecord]:
    settings = study.settings()
    return [
        summarize_point(
            PointRecord(name=name, overrides=settings[name], params=cost(recipe.spec).params),
            [run for run in runs if run.recipe == name],
            judged_by,
        )
        for name, recipe in recipes.items()
    ]
