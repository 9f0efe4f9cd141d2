"""What a run has come to beside its network: every state keeps it, and the record tells it."""

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
    """The best epoch so far by what the recipe selects on; no weights where it takes the last ones."""

    accuracy: float
    epoch: int
    weights: dict[str, Tensor]


@dataclass(kw_only=True)
class History:
    """A run's curve, its best epoch, and what befell it.

    `seconds` is the time that ended processes spent on it, `command` the one that began it, `init` what gave its first
    weights.
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
        """Plain values and tensors."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> History:
        """From a state that holds `state_dict` among other things."""
        kept = {each.name: state[each.name] for each in fields(cls)}
        kept["curve"] = [EpochPoint(**point) for point in kept["curve"]]
        kept["best"] = Best(**kept["best"]) if kept["best"] else None
        kept["init"] = GivenModel(**kept["init"]) if kept["init"] else None
        return cls(**kept)

    def go_back_to(self, before: History) -> None:
        """Forget what was trained since; what it took, and what befell the run, stays counted."""
        self.curve, self.best = before.curve, before.best
        self.rollbacks += 1
