"""A scaled recipe is the same training, shorter: every part of it keeps its share."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny_recipe import TINY
from resfit.errors import BadInput
from resfit.fitting import fitted_spec
from resfit.optim import lr_factor
from resfit.recipe import Recipe, get_recipe
from resfit.scale import fitted, scaled

SCHEDULES = st.sampled_from(
    [
        {"name": "constant"},
        {"name": "step", "period": 30},
        {"name": "multistep", "milestones": [50, 100]},
        {"name": "cosine"},
        {"name": "cosine", "period": 150, "final": 0.1},
        {"name": "restarts", "period": 20, "growth": 2.0},
        {"name": "triangular"},
        {"name": "onecycle"},
    ]
)


@settings(deadline=None)
@given(schedule=SCHEDULES, warmup=st.sampled_from((0, 10)), epochs=st.integers(1, 400), done=st.floats(0, 0.999))
def test_the_learning_rate_at_a_share_of_the_training_is_the_same(
    schedule: dict[str, object], warmup: int, epochs: int, done: float
) -> None:
    long = Recipe.from_dict({**TINY, "train": {"epochs": 200}, "schedule": {**schedule, "warmup": warmup}})
    short = scaled(long, epochs / 200)
    assert short.train.epochs == epochs
    rates = [lr_factor(r.schedule, done * r.train.epochs, r.train.epochs) for r in (long, short)]
    at_a_step = any(abs(done - mark / 200) < 1e-6 for mark in range(201))  # it may round to either side of itself
    jumps = schedule["name"] in ("step", "multistep", "restarts")
    assert rates[0] == pytest.approx(rates[1], abs=1e-9) or (at_a_step and jumps)


def test_all_that_is_counted_in_epochs_goes_along() -> None:
    train = {"epochs": 100, "patience": 30, "freeze_stem_after": 25, "resize": [[0.0, 6], [0.5, 8]]}
    spec = {**TINY["spec"], "stem": {"kind": "whiten", "kernel": 2, "channels": 8}}
    long = Recipe.from_dict(
        {**TINY, "spec": spec, "train": train, "evaluate": {"every": 4}, "average": {"name": "ema", "decay": 0.99}}
    )
    short = scaled(long, 0.1, 0.5)
    assert (short.train.epochs, short.train.patience, short.train.freeze_stem_after) == (10, 3, 2.5)
    assert (short.evaluate.every, short.data.fraction, short.data.val) == (1, 0.5, long.data.val)
    assert short.train.resize == long.train.resize
    steps = 20  # of the long training; the short one has a twentieth as many
    assert short.average.decay == pytest.approx(long.average.decay**steps)
    assert short.deviations == ("scaled: 10 instead of 100 epochs, 0.5 of the training images",)
    assert short.spec == long.spec and short.optim == long.optim and short.augment == long.augment


def test_a_short_period_stays_one_that_is_allowed(tiny: Recipe) -> None:
    recipe = tiny.replace({"train.epochs": 200, "schedule": {"name": "restarts", "period": 1}})
    assert scaled(recipe, 1 / 200).schedule.period == 0.01


def test_nothing_is_rounded_away() -> None:
    long = Recipe.from_dict({**TINY, "train": {"epochs": 200, "patience": 50}, "schedule": {"name": "cosine"}})
    short = scaled(long, 1 / 1000)
    assert (short.train.epochs, short.train.patience, short.evaluate.every) == (1, 1, 1)


def test_the_same_length_is_the_same_recipe(tiny: Recipe) -> None:
    assert scaled(tiny) is tiny
    assert scaled(tiny, 1.1) is tiny  # 3 epochs rounded


@pytest.mark.parametrize(("factor", "fraction"), [(0, 1), (-1, 1), (float("inf"), 1), (1, 0), (1, 1.5)])
def test_other_scales_are_refused(tiny: Recipe, factor: float, fraction: float) -> None:
    with pytest.raises(BadInput, match="give other numbers"):
        scaled(tiny, factor, fraction)


def test_a_fitted_recipe_differs_in_its_network_s_widths_alone():
    recipe = get_recipe("cifar10-94")
    found = fitted(recipe, 500_000)
    assert (found.name, found.budget) == ("cifar10-94-fit-500k", 500_000)
    assert found.spec == fitted_spec(recipe.spec, 500_000) != recipe.spec
    same = {"name": recipe.name, "budget": recipe.budget, "description": recipe.description}
    assert found.replace({**same, "spec": recipe.spec.to_dict()}) == recipe


def test_a_budget_that_holds_no_network_is_refused():
    with pytest.raises(BadInput, match="no network of digits's proportions has 100 parameters or less"):
        fitted(get_recipe("digits"), 100)
