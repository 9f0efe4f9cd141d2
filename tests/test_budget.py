"""The limit holds to the unit, and what is offered instead fits."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.budget import judge, require_fit
from resfit.cost import cost
from resfit.errors import BadInput
from resfit.fitting import fitted_spec
from resfit.recipe import get_recipe
from resfit.scale import fitted
from resfit.solver import design
from resfit.spec import NetSpec

SEED = get_recipe("seed001d").spec  # 4,977,226 parameters
WIDE = NetSpec.from_dict({"stages": [{"blocks": 2, "channels": c} for c in (64, 128, 256, 512)]})  # 11,173,962


def widths(spec: NetSpec) -> list[int]:
    return [spec.stem.channels, *(stage.channels for stage in spec.stages)]


def test_the_limit_itself_fits_and_one_less_does_not():
    assert judge(SEED, 4_977_226).fits
    assert require_fit(SEED, 4_977_226).params == 4_977_226
    assert not judge(SEED, 4_977_225).fits
    with pytest.raises(BadInput, match="1 over the budget of 4,977,225"):
        require_fit(SEED, 4_977_225)


def test_a_refusal_tells_the_excess_and_the_nearest_network_that_fits():
    fitting = fitted_spec(WIDE, 5_000_000)
    with pytest.raises(BadInput) as caught:
        require_fit(WIDE, 5_000_000)
    line = str(caught.value)
    assert "11,173,962 parameters, 6,173,962 over the budget of 5,000,000" in line
    assert f"the nearest that fits has {cost(fitting).params:,} parameters, with spec.stages.0.channels 40," in line
    assert "\n" not in line


@pytest.mark.parametrize(("name", "budget"), [("digits", 42_000), ("seed003", 1_000_000), ("seed004", 700_000)])
def test_what_is_offered_fits_when_it_is_given(name, budget):
    """The stem narrows too, and the inner widths of bottlenecks."""
    recipe = get_recipe(name)
    with pytest.raises(BadInput) as caught:
        require_fit(recipe.spec, budget)
    _, _, fields = str(caught.value).partition(", with ")
    offered = recipe.replace({field: int(value) for field, value in (pair.split() for pair in fields.split(", "))})
    assert offered.spec == fitted_spec(recipe.spec, budget)
    assert judge(offered.spec, budget).fits


def test_where_nothing_fits_a_refusal_says_so():
    with pytest.raises(BadInput, match="fewer stages or blocks"):
        require_fit(WIDE, 100)


def test_a_verdict_says_how_much_of_the_budget_is_used():
    assert str(judge(SEED, 5_000_000)) == "4,977,226 parameters, 99.5% of the budget of 5,000,000: fits"


@pytest.mark.parametrize("budget", [0, -5, "5M", 5e6, None, True, 10**12])
def test_what_is_no_budget_is_refused_in_python_too(budget):
    recipe = get_recipe("digits")
    for asked in (lambda: judge(SEED, budget), lambda: fitted(recipe, budget), lambda: design(budget)):
        with pytest.raises(BadInput, match=r"\(budget\): give a number of trainable parameters"):
            asked()


def test_numpy_s_whole_numbers_are_budgets_too():
    assert judge(SEED, np.int64(5_000_000)).fits
