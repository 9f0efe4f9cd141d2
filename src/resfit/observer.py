"""Observer: the callbacks with which a run reports its progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from resfit.data import Dataset
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord


class Observer:
    """Callbacks of a run in progress. They do nothing by default; the command line overrides them to show progress."""

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """The data is loaded and training is about to start. `note` is one line about device and precision."""

    def stepped(self, epoch: int, done: float) -> None:
        """An optimizer step ended; `done` is the finished fraction of the current epoch."""

    def epoch_ended(self, point: EpochPoint) -> None:
        """An epoch was trained and, if the recipe asks for it after this epoch, validated."""

    def finished(self, record: RunRecord) -> None:
        """The run ended and its folder is complete."""

    def message(self, text: str) -> None:
        """Show one line of text to the user."""


class Apart(Observer):
    """Forwards every call to `observer`, so that random numbers drawn in the callbacks do not change the run."""

    def __init__(self, observer: Observer, device: torch.device) -> None:
        self.observer, self.devices = observer, [device] if device.type == "cuda" else []

    def __getattribute__(self, name: str) -> Any:
        """Return the observer's method, wrapped to restore the state of torch's random generators after each call."""
        if name in ("observer", "devices"):
            return super().__getattribute__(name)
        return torch.random.fork_rng(self.devices)(getattr(self.observer, name))
