"""Run a study's unfinished runs and write its results: study.json and one report page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.executors.jobs import Job, Watcher, finished_runs, judged_by, run_jobs
from resfit.executors.local import Executor
from resfit.files import write_atomic
from resfit.recipe import Recipe
from resfit.record import RunRecord, finished_seeds
from resfit.report.study import write_study
from resfit.study.plan import Study
from resfit.studyrecord import (
    FailedRun,
    JudgedBy,
    PointRecord,
    StudyRecord,
    against_baseline,
    read_study,
    summarize_point,
)
from resfit.version import __version__


def execute(
    study: Study,
    recipes: Mapping[str, Recipe],
    executor: Executor,
    *,
    seeds: int,
    watcher: Watcher | None = None,
) -> StudyRecord:
    """Run `recipes`, the study's points, each with seeds 0 ... `seeds` - 1, in the executor's folder.

    Finished runs are not repeated, and those of further seeds count as well; unfinished ones are resumed; if a run
    fails, it is reported and the others continue. If interrupted, record and page show the finished runs. Raises
    BadInput if the folder holds another study, or runs with other settings, on other images, or from other initial
    weights.
    """
    out = executor.options.out
    _require_own(out, study)
    wanted = {name: [*range(seeds), *_further_seeds(out / name, seeds)] for name in recipes}
    jobs = [Job(recipe=recipes[name], seed=seed) for name in recipes for seed in wanted[name]]
    jobs.sort(key=lambda job: job.seed)
    judge = judged_by(jobs, executor.options)
    write = partial(_write, study, recipes, judge, len(jobs), out)
    failed: list[FailedRun] = []
    try:
        return write(run_jobs(jobs, executor, watcher, failed), failed)
    except KeyboardInterrupt:
        write(finished_runs(jobs, out), failed)
        raise


def _require_own(out: Path, study: Study) -> None:
    """Raise BadInput if the results in `out` are of a study with points that this one has not: they would be lost."""
    if not (out / "study.json").exists():
        return
    points = {point.name for point in read_study(out).points if point.seeds}
    if others := sorted(points - set(study.settings())):
        raise BadInput(
            f"another study already exists ({out}: {', '.join(others)}): give another --out, or move study.json away"
        )


def _further_seeds(folder: Path, seeds: int) -> list[int]:
    """Return the seeds from `seeds` up of a point's finished runs."""
    return [seed for seed in finished_seeds(folder) if seed >= seeds]


def _write(
    study: Study,
    recipes: Mapping[str, Recipe],
    judge: JudgedBy,
    wanted: int,
    out: Path,
    runs: Sequence[RunRecord],
    failed: Sequence[FailedRun],
) -> StudyRecord:
    """Write the study's record and page from the finished runs."""
    points = _points(study, recipes, runs, judge)
    result = StudyRecord(
        resfit=__version__,
        study=study.name,
        description=study.description,
        recipe=study.recipe,
        baseline=study.baseline,
        judged_by=judge,
        epochs=recipes[study.baseline].train.epochs,
        fraction=recipes[study.baseline].data.fraction,
        wanted=wanted,
        points=against_baseline(points, study.baseline),
        failed=tuple(failed),
        env=runs[0].env if runs else {},
    )
    write_atomic(out / "study.json", json.dumps(result.to_dict(), indent=1))
    write_study(result, runs, out / "report.html")
    return result


def _points(
    study: Study, recipes: Mapping[str, Recipe], runs: Sequence[RunRecord], judge: JudgedBy
) -> list[PointRecord]:
    found = {name: [run for run in runs if run.recipe == name] for name in recipes}
    prices = {name: own[0].params if own else cost(recipes[name].spec).params for name, own in found.items()}
    return [
        summarize_point(PointRecord(name=name, overrides=overrides, params=prices[name]), found[name], judge)
        for name, overrides in study.settings().items()
    ]
