"""Progress of many runs: a live table on a terminal (one row per study point), otherwise one line per finished run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from resfit.executors.jobs import Job, Watcher
from resfit.record import summarize
from resfit.report.words import plus_minus
from resfit.studyrecord import judged_accuracy

if TYPE_CHECKING:
    from resfit.record import EpochPoint, RunRecord
    from resfit.studyrecord import JudgedBy


class Board(Watcher):
    """Show the progress of every point on standard error."""

    def __init__(self, points: Sequence[str]) -> None:
        self.points = points
        self.runs: dict[str, int] = dict.fromkeys(points, 0)
        self.values: dict[str, list[float]] = {point: [] for point in points}
        self.under_way: dict[str, dict[int, str]] = {point: {} for point in points}
        self.failures: dict[str, int] = dict.fromkeys(points, 0)
        self.said: set[str] = set()
        self.judged_by: JudgedBy = "validation"
        self.console = Console(stderr=True, highlight=False, emoji=False)
        self.lock = threading.Lock()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def planned(self, jobs: Sequence[Job], done: Sequence[RunRecord], judged_by: JudgedBy) -> None:
        """Print how many runs there are to do."""
        self.judged_by = judged_by
        for job in jobs:
            self.runs[job.recipe.name] += 1
        for record in done:
            self.runs[record.recipe] += 1
            self.values[record.recipe].append(judged_accuracy(record, judged_by))
        self._show(f"{len(jobs)} runs to do, {len(done)} already done; judged by {judged_by} accuracy")

    def epoch_ended(self, job: Job, point: EpochPoint) -> None:
        """Show the epoch in the point's row."""
        seen = f", {100 * point.val_accuracy:.2f} %" if point.val_accuracy is not None else ""
        self.under_way[job.recipe.name][job.seed] = f"epoch {point.epoch} of {job.recipe.train.epochs}{seen}"
        self._show()

    def finished(self, job: Job, record: RunRecord) -> None:
        """Add the run to the point's mean."""
        self.under_way[job.recipe.name].pop(job.seed, None)
        accuracy = judged_accuracy(record, self.judged_by)
        self.values[job.recipe.name].append(accuracy)
        self._show(f"{job}: {100 * accuracy:.2f} % {self.judged_by}, {record.seconds_to_result:.1f} s{self._count()}")

    def failed(self, job: Job, error: str) -> None:
        """Print why the run failed."""
        self.under_way[job.recipe.name].pop(job.seed, None)
        self.failures[job.recipe.name] += 1
        self._show(f"{job}: failed: {error}{self._count()}")

    def message(self, text: str, job: Job | None = None) -> None:
        """Print a message, once if several runs have the same."""
        if text not in self.said:
            self.said.add(text)
            with self.lock:
                self.console.print(f"{job}: {text}" if job else text, markup=False, soft_wrap=True)

    def _count(self) -> str:
        ended = sum(map(len, self.values.values())) + sum(self.failures.values())
        return f" ({ended} of {sum(self.runs.values())})"

    def _show(self, line: str = "") -> None:
        with self.lock:
            if self.live:
                self.live.update(self._table(), refresh=True)
            elif line:
                self.console.print(line, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("point", "runs", f"{self.judged_by} accuracy", "running"):
            table.add_column(name)
        for point in self.points:
            ended = f"{len(self.values[point])} of {self.runs[point]}"
            failures = f", {self.failures[point]} failed" if self.failures[point] else ""
            under_way = "; ".join(f"seed {seed}: {text}" for seed, text in sorted(self.under_way[point].items()))
            table.add_row(point, f"{ended}{failures}", self._accuracy(point), under_way)
        return table

    def _accuracy(self, point: str) -> str:
        if not self.values[point]:
            return ""
        summary = summarize(self.values[point])
        return f"{plus_minus(summary.mean, summary.std)} %"
