"""The training history of a run: curve, best epoch, times and events, saved in checkpoints and in the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from resfit.environment import command_line
from resfit.fields import to_plain
from resfit.record import EpochPoint, GivenModel


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best epoch so far by the recipe's selection metric; `weights` is empty if the recipe takes the last ones."""

    accuracy: float
    epoch: int
    weights: dict[str, Tensor]


@dataclass(kw_only=True)
class History:
    """A run's learning curve, best epoch, times, events and rollbacks.

    `seconds` is the time that earlier processes spent on the run, `command` is the command that started it, and `init`
    is the model that its initial weights came from.
    """

    command: str = field(default_factory=command_line)
    init: GivenModel | None = None
    curve: list[EpochPoint] = field(default_factory=list)
    best: Best | None = None
    test_scored: int = 0
    seconds: float = 0.0
    seconds_saving: float = 0.0
    events: list[str] = field(default_factory=list)
    rollbacks: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain values and tensors."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> History:
        """Restore the history from a state that includes the entries of `state_dict`."""
        kept = {each.name: state[each.name] for each in fields(cls)}
        kept["curve"] = [EpochPoint(**point) for point in kept["curve"]]
        kept["best"] = Best(**kept["best"]) if kept["best"] else None
        kept["init"] = GivenModel(**kept["init"]) if kept["init"] else None
        return cls(**kept)

    def go_back_to(self, before: History) -> None:
        """Restore the curve and best epoch of `before`; keep times and events, and count one more rollback."""
        self.curve, self.best = before.curve, before.best
        self.rollbacks += 1
