"""The command line's Observer: a progress bar with the time left on a terminal, and one line per epoch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from resfit.observer import Observer

if TYPE_CHECKING:
    from resfit.data import Dataset
    from resfit.recipe import Recipe
    from resfit.record import EpochPoint


class Progress(Observer):
    """Prints lines to stderr, with a progress bar below them on a terminal. `data` is the run's data set."""

    def __init__(self, epochs: int = 0) -> None:
        self.epochs = epochs
        self.console = Console(stderr=True, highlight=False, emoji=False)
        self.bar: Bar | None = None
        self.data: Dataset | None = None
        self.began, self.shown = time.perf_counter(), 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Print what the run trains on, and start the bar."""
        self.epochs, self.data = recipe.train.epochs, data
        sizes = f"{len(data.train):,} train, {len(data.val):,} val, {len(data.test):,} test images"
        self.message(f"{data.name}: {sizes}; {note}")
        for remark in data.notes:
            self.message(remark)
        self.began = time.perf_counter()
        if self.console.is_terminal:
            columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            columns += [TextColumn("epochs"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("training", total=self.epochs)
            self.bar.start()

    def stepped(self, epoch: int, done: float) -> None:
        """Advance the bar within an epoch."""
        if self.bar is not None:
            self.bar.update(self.task, completed=epoch - 1 + done)

    def epoch_ended(self, point: EpochPoint) -> None:
        """Print one line for the epoch."""
        parts = [f"epoch {point.epoch}/{self.epochs}", f"loss {point.train_loss:.4f}"]
        parts.append(f"train {100 * point.train_accuracy:.2f} %")
        if point.val_accuracy is not None:
            parts.append(f"val {100 * point.val_accuracy:.2f} %")
        if point.test_accuracy is not None:
            parts.append(f"test {100 * point.test_accuracy:.2f} %")
        self.shown += 1  # epochs before a resume do not count
        left = (time.perf_counter() - self.began) / self.shown * (self.epochs - point.epoch)
        parts.append(f"{point.seconds:.1f} s")
        if self.bar is None:
            parts.append(f"about {_clock(left)} left")
        self.message("  ".join(parts))

    def message(self, text: str) -> None:
        """Print one line of text for the user."""
        self.console.print(text, markup=False, soft_wrap=True)
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
