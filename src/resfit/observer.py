"""What a run tells while it goes on, to whoever watches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from resfit.data import Dataset
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord


class Observer:
    """What a run tells while it goes on. The default is silent; the command line shows it."""

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """The data is in memory; training is about to begin. `note` is one line on device and precision."""

    def stepped(self, epoch: int, done: float) -> None:
        """`done` is the finished part of the epoch that is under way."""

    def epoch_ended(self, point: EpochPoint) -> None:
        """An epoch was trained, and validated where its recipe says so."""

    def finished(self, record: RunRecord) -> None:
        """The run is over and its folder complete."""

    def message(self, text: str) -> None:
        """A line for the user."""


class Apart(Observer):
    """Hands on what a run tells; random numbers that are drawn meanwhile are not missing in the run."""

    def __init__(self, observer: Observer, device: torch.device) -> None:
        self.observer, self.devices = observer, [device] if device.type == "cuda" else []

    def __getattribute__(self, name: str) -> Any:
        """The observer's own method, with torch's generators put back after each call."""
        if name in ("observer", "devices"):
            return super().__getattribute__(name)
        return torch.random.fork_rng(self.devices)(getattr(self.observer, name))
