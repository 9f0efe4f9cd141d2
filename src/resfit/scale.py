"""Scaled versions of a recipe: fewer or more epochs and images for a time limit, other widths for a budget."""

from __future__ import annotations

from resfit.budget import require_fitted_spec
from resfit.counts import short_count
from resfit.errors import BadInput
from resfit.recipe import SHORTEST_PERIOD, Recipe


def scaled(recipe: Recipe, factor: float = 1.0, fraction: float = 1.0) -> Recipe:
    """Return `recipe` with `factor` times its epochs, at least 1, on `fraction` of its training images.

    Everything counted in epochs is scaled too, so that each phase keeps its share of the training: warm-up, period,
    milestones, freezing of the stem, patience, and the validation interval. The decay of an EMA of the weights is
    adjusted so that it forgets as much over the same share of the steps. Settings that are fractions of the training
    (`resize`) and the validation images are unchanged. `deviations` of the recipe describes the scaling.
    """
    if not (0 < factor < float("inf") and 0 < fraction <= 1):
        raise BadInput(
            f"cannot scale to {factor:g} times the epochs on {fraction:g} of the images (scale): give other numbers"
        )
    epochs = max(1, round(factor * recipe.train.epochs))
    if (epochs, fraction) == (recipe.train.epochs, 1):
        return recipe
    factor = epochs / recipe.train.epochs  # recomputed from whole epochs, so that the schedule ends with the training
    fields: dict[str, object] = {
        "train.epochs": epochs,
        "train.patience": recipe.train.patience and max(1, round(factor * recipe.train.patience)),
        "train.freeze_stem_after": _times(recipe.train.freeze_stem_after, factor),
        "evaluate.every": max(1, round(factor * recipe.evaluate.every)),
        "schedule.warmup": factor * recipe.schedule.warmup,
        "schedule.period": recipe.schedule.period and max(SHORTEST_PERIOD, factor * recipe.schedule.period),
        "schedule.milestones": [factor * milestone for milestone in recipe.schedule.milestones],
        "data.fraction": fraction * recipe.data.fraction,
        "deviations": [*recipe.deviations, _in_words(recipe, epochs, fraction)],
    }
    if recipe.average.name == "ema":
        fields["average.decay"] = recipe.average.decay ** (1 / (factor * fraction))
    return recipe.replace(fields)


def fitted(recipe: Recipe, budget: int) -> Recipe:
    """Return `recipe` with all widths of its network scaled alike to fill `budget`, which becomes its budget.

    The new name contains both, as in cifar10-94-fit-500k; everything else is unchanged. The classes count as
    parameters, so `spec.num_classes` must be set for an image folder first. Raises BadInput if no network of these
    proportions is small enough.
    """
    spec = require_fitted_spec(recipe.spec, budget, recipe.name)
    fields = {
        "name": f"{recipe.name}-fit-{short_count(budget)}",
        "description": f"{recipe.name}, its widths scaled to fill {budget:,} parameters",
        "budget": budget,
        "spec": spec.to_dict(),
    }
    return recipe.replace(fields)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _in_words(recipe: Recipe, epochs: int, fraction: float) -> str:
    parts = [f"{epochs} instead of {recipe.train.epochs} epochs"] if epochs != recipe.train.epochs else []
    parts += [f"{fraction:g} of the training images"] if fraction != 1 else []
    return f"scaled: {', '.join(parts)}"
