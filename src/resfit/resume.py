"""What lies in a run folder already, and whether a run may begin there or go on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resfit.checkpoint import has_state, newest_state
from resfit.distributed import broadcast
from resfit.errors import BadInput
from resfit.fields import differences
from resfit.recipe import Recipe
from resfit.record import settings

STATE_FORMAT = 5

# What the saved tensors and the best weights so far belong to: no run can change it under way.
_FIXED = (
    *("name", "spec", "data", "init", "optim.name", "average.name", "distill"),
    *("train.precision", "train.skip_easy", "evaluate.selection"),
)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """An unfinished run: its newest state, the recipe to go on with, and what of it was changed, in words."""

    state: dict[str, Any]
    recipe: Recipe
    changes: str = ""


def require_unused(folder: Path) -> None:
    """Raise BadInput where a run lies in `folder`, finished or not."""
    if _is_finished(folder):
        raise BadInput(f"a finished run exists already ({folder}): give another --out or --seed, or move it away")
    if has_state(folder):
        raise BadInput(
            f"an unfinished run exists already ({folder}): go on with --resume {folder}, or give another --out"
        )


def _is_finished(folder: Path) -> bool:
    return (folder / "record.json").exists()


def begun_run(folder: Path, recipe: Recipe, *, override: bool, tell: Callable[[str], None]) -> Begun:
    """The run in `folder`, to go on with `recipe`; `tell` hears of damaged files, in a line each.

    Raises BadInput that shows each changed field, unless `override` accepts the change and it can be made under way.
    """
    if _is_finished(folder):
        raise BadInput(f"the run is finished ({folder}): there is nothing to resume")
    state = broadcast(lambda: newest_state(folder, tell))
    if state.get("format") != STATE_FORMAT:
        raise BadInput(f"the state is of another version of resfit ({folder}): resume it with that version")
    _tell_damaged_metrics(folder / "metrics.jsonl", tell)
    began = Recipe.from_dict(state["recipe"])
    if began.data.name == "folder":  # the run took its number of classes from the images
        recipe = replace(recipe, spec=replace(recipe.spec, num_classes=began.spec.num_classes))
    changed = differences(settings(began.to_dict()), settings(recipe.to_dict()))
    words = "; ".join(f"{field}: {json.dumps(old)} -> {json.dumps(new)}" for field, old, new in changed)
    if fixed := [field for field, _, _ in changed if _is_fixed(field)]:
        raise BadInput(f"a run cannot change {fixed[0]} under way ({words}): start a new run for it")
    if changed and not override:
        raise BadInput(
            f"the recipe changed since the run began ({words}): change it back, or accept it with resfit train "
            f"--resume {folder} --override"
        )
    return Begun(state=state, recipe=recipe, changes=words)


def _is_fixed(field: str) -> bool:
    return any(field == fixed or field.startswith(f"{fixed}.") for fixed in _FIXED)


def _tell_damaged_metrics(path: Path, tell: Callable[[str], None]) -> None:
    """Say which line of a metrics file cannot be read; the run writes the file anew from its state."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            tell(f"damaged metrics ({path}, line {number}): written anew from the checkpoint")
            return
