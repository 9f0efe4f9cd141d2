"""TuneRecord: the results of a hyperparameter search, as stored in tune.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resfit.fields import Plain, from_json, json_file

Outcome = Literal["complete", "pruned", "diverged", "refused", "failed", "running"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial. `values` are the sampled settings, by field; `curve` is (epoch, validation accuracy as a fraction).

    outcome: complete; pruned (stopped early as hopeless); diverged (the loss was not finite, or it ran out of memory);
    refused (over the budget, or settings that give no valid network: nothing was built); failed (its process was
    killed); running. `accuracy` is that of the weights that the recipe selects, for complete trials. `note` tells why a
    trial has no result.
    """

    number: int
    outcome: Outcome
    values: dict[str, Any]
    params: int | None = None
    accuracy: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    seconds: float | None = None
    note: str = ""

    @property
    def counts(self) -> bool:
        """Whether it was trained, and so counts as one of the search's trials."""
        return self.outcome in ("complete", "pruned", "diverged")


@dataclass(frozen=True, kw_only=True)
class TuneRecord(Plain):
    """The results of a search. `best` is the number of the best trial; `best_recipe` is its full-length recipe.

    `space` maps fields to ranges or choices. `importance` gives the fraction of the accuracy's variance that each field
    explains, normalized to a sum of 1 (fANOVA); it is empty if too few trials are complete. `test_scored` counts how
    often the test set was scored: always 0.
    """

    resfit: str
    recipe: str
    config: dict[str, Any]
    space: dict[str, Any]
    budget: int
    epochs: int
    fraction: float
    seed: int
    data: dict[str, Any]
    env: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    importance: dict[str, Any]
    best: int | None
    best_recipe: dict[str, Any] | None
    judged_by: Literal["validation"] = "validation"
    test_scored: int = 0

    @property
    def trained(self) -> int:
        """The number of trials that were trained."""
        return sum(trial.counts for trial in self.trials)


def read_search(path: str | Path) -> TuneRecord:
    """Read the search at `path`: a tune.json, or the folder that contains one."""
    return from_json(TuneRecord, json_file(path, "tune.json", "search"), "search")
