"""Measure the overhead of a run on Ray and in a local process: python benchmarks/overhead.py

Runs of a recipe follow one another, each on one core: on a local Ray cluster, and in this process. The overhead is the
time from the end of the previous run to the end of this one, minus `seconds_to_result` of its record: submission and
transfer, loading, writing the folder, and the report. The first run on Ray also joins the cluster, starts a process and
imports torch; it is reported separately.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import Numbers, Recorder, parser, run_main, take_turns

from resfit.executors.jobs import Job, Watcher, run_jobs
from resfit.executors.local import Executor, InProcess, RunOptions
from resfit.recipe import Recipe, get_recipe
from resfit.record import RunRecord
from resfit.studyrecord import FailedRun


class Stopwatch(Watcher):
    """Watcher that records each run's overhead in seconds."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.beyond: list[float] = []

    def finished(self, job: Job, record: RunRecord) -> None:
        """Record the time since the previous run ended, minus the run's own."""
        now = time.perf_counter()
        self.beyond.append(now - self.last - record.seconds_to_result)
        self.last = now


def on_ray(recipe: Recipe, runs: int) -> Numbers:
    """Measure runs on a local Ray cluster."""
    from resfit.executors.cluster import OnRay

    return _measure(recipe, runs, lambda place: OnRay(place, "local", cpus=1, device="cpu", workers=1))


def here(recipe: Recipe, runs: int) -> Numbers:
    """Measure runs in this process."""
    torch.set_num_threads(1)
    return _measure(recipe, runs, lambda place: InProcess(place, "cpu"))


def _measure(recipe: Recipe, runs: int, executor: Callable[[RunOptions], Executor]) -> Numbers:
    watch = Stopwatch()
    with TemporaryDirectory() as folder:
        out = Path(folder)
        jobs = [Job(recipe=recipe, seed=seed) for seed in range(runs)]
        made = executor(RunOptions(out=out))
        failed: list[FailedRun] = []
        run_jobs(jobs, made, watch, failed)
    assert not failed, failed
    return summary(watch.beyond)


def summary(beyond: Sequence[float]) -> Numbers:
    """Return the overhead of the first run, and median and maximum of the others, in seconds."""
    return {"first": beyond[0], "median": statistics.median(beyond[1:]), "largest": max(beyond[1:])}


def main() -> None:
    """Measure in turn, print and record."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--recipe", default="digits")
    options_parser.add_argument("--epochs", type=int, default=2, help="of each run")
    options_parser.add_argument("--runs", type=int, default=10, help="a round, on Ray and here")
    options_parser.add_argument("--rounds", type=int, default=1)
    options = options_parser.parse_args()
    recipe = get_recipe(options.recipe, {"train.epochs": options.epochs})
    settings = {"epochs": options.epochs, "runs": options.runs}
    recorder = Recorder(benchmark="overhead", subject=recipe.name, settings=settings, device="cpu", out=options.out)
    measure = {"ray": lambda: on_ray(recipe, options.runs), "here": lambda: here(recipe, options.runs)}
    take_turns(recorder, measure, lambda found: {}, options.rounds)


if __name__ == "__main__":
    run_main(main)
