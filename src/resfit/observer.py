"""Observer: the callbacks with which a run reports its progress."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
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


class Relay(Observer, ABC):
    """Base class of observers that hand every callback on, by `forward`."""

    @abstractmethod
    def forward(self, name: str, *arguments: Any) -> None:
        """Hand on the callback called `name`."""

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Handed on."""
        self.forward("started", recipe, data, folder, note)

    def stepped(self, epoch: int, done: float) -> None:
        """Handed on."""
        self.forward("stepped", epoch, done)

    def epoch_ended(self, point: EpochPoint) -> None:
        """Handed on."""
        self.forward("epoch_ended", point)

    def finished(self, record: RunRecord) -> None:
        """Handed on."""
        self.forward("finished", record)

    def message(self, text: str) -> None:
        """Handed on."""
        self.forward("message", text)


class Observers(Relay):
    """Several observers of one run, called in order."""

    def __init__(self, members: Iterable[Observer]) -> None:
        self.members = list(members)

    def forward(self, name: str, *arguments: Any) -> None:
        """Call all of them."""
        for member in self.members:
            getattr(member, name)(*arguments)


class Apart(Relay):
    """An observer whose random numbers do not change the run: torch's generators are restored after each callback."""

    def __init__(self, observer: Observer, device: torch.device) -> None:
        self.observer, self.devices = observer, [device] if device.type == "cuda" else []

    def forward(self, name: str, *arguments: Any) -> None:
        """Call the observer."""
        with torch.random.fork_rng(self.devices):
            getattr(self.observer, name)(*arguments)
