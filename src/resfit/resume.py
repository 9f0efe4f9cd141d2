"""Check a run folder before training: it must be unused for a new run, or hold a state that can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resfit.checkpoint import has_state, newest_state
from resfit.distributed import broadcast
from resfit.errors import BadInput
from resfit.fields import differences, is_within
from resfit.recipe import Recipe
from resfit.record import is_finished, settings

STATE_FORMAT = 5

# Fields that the saved tensors and the best weights depend on; they cannot change when a run is resumed.
_FIXED = (
    *("name", "spec", "data", "init", "optim.name", "average.name", "distill"),
    *("train.precision", "train.skip_easy", "evaluate.selection"),
)
_MOVABLE = "distill.teacher"  # the files may have moved: their digests are compared


@dataclass(frozen=True, kw_only=True)
class Begun:
    """An unfinished run: its newest state, the recipe to resume with, and a description of the recipe's changes."""

    state: dict[str, Any]
    recipe: Recipe
    changes: str = ""


def require_unused(folder: Path) -> None:
    """Raise BadInput if `folder` contains a run, finished or not."""
    if is_finished(folder):
        raise BadInput(f"a finished run already exists ({folder}): give another --out or --seed, or move it away")
    if has_state(folder):
        raise BadInput(
            f"an unfinished run already exists ({folder}): continue with --resume {folder}, or give another --out"
        )


def begun_run(folder: Path, recipe: Recipe, *, override: bool, tell: Callable[[str], None]) -> Begun:
    """Load the unfinished run in `folder`, to be resumed with `recipe`; `tell` gets a line about each damaged file.

    Raises BadInput, which lists the changed fields, if the recipe has changed since the run began. `override` accepts
    changes, except of fields that can never change in a run. Also raises BadInput if the run is finished or its state
    has another format.
    """
    if is_finished(folder):
        raise BadInput(f"the run is finished ({folder}): there is nothing to resume")
    state = broadcast(lambda: newest_state(folder, tell))
    if state.get("format") != STATE_FORMAT:
        raise BadInput(f"the state was saved by another version of resfit ({folder}): resume it with that version")
    _tell_damaged_metrics(folder / "metrics.jsonl", tell)
    began = Recipe.from_dict(state["recipe"])
    if began.data.name == "folder":  # the run took its number of classes from the images
        recipe = replace(recipe, spec=replace(recipe.spec, num_classes=began.spec.num_classes))
    changed = differences(settings(began.to_dict()), settings(recipe.to_dict()))
    words = "; ".join(f"{field}: {json.dumps(old)} -> {json.dumps(new)}" for field, old, new in changed)
    if fixed := [field for field, _, _ in changed if _is_fixed(field)]:
        raise BadInput(f"a run cannot change {fixed[0]} after it began ({words}): start a new run for it")
    if changed and not override:
        raise BadInput(
            f"the recipe has changed since the run began ({words}): take the change back, or add --override to "
            "resfit train --resume to accept it"
        )
    trained = state["trainer"]["epoch"] + (state["trainer"]["under_way"] is not None)
    if recipe.train.epochs < trained:
        raise BadInput(f"the run is in epoch {trained} of {recipe.train.epochs} (train.epochs): give {trained} or more")
    return Begun(state=state, recipe=recipe, changes=words)


def _is_fixed(field: str) -> bool:
    return field != _MOVABLE and any(is_within(field, fixed) for fixed in _FIXED)


def _tell_damaged_metrics(path: Path, tell: Callable[[str], None]) -> None:
    """Report the first unreadable line of a metrics file; the run rewrites the file from its state."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            tell(f"damaged metrics ({path}, line {number}): rewritten from the checkpoint")
            return
