"""The limit holds to the unit, and what is offered instead fits."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.budget import judge, parse_count, require_fit, short_count
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


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5000000", 5_000_000),
        ("5_000_000", 5_000_000),
        ("5,000,001", 5_000_001),
        ("5M", 5_000_000),
        (" 2.5m ", 2_500_000),
        ("500k", 500_000),
        ("0.3K", 300),
        ("1e6", 1_000_000),
        ("2,500k", 2_500_000),
        ("1B", 1_000_000_000),
        ("1.5g", 1_500_000_000),
    ],
)
def test_a_budget_is_read_as_people_write_it(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [(5_000_000, "5M"), (2_500_000, "2.5M"), (985_000, "985k"), (1_234_567, "1234567"), (999, "999"), (1_500, "1.5k")],
)
def test_a_budget_is_written_as_people_do(count, text):
    assert short_count(count) == text
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "much", "0", "-5M", "nan", "inf", "5MM", "1e999", "2,5M", "5,00", ",5"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(BadInput, match="--budget"):
        parse_count(text)


@pytest.mark.parametrize("budget", [0, -5, "5M", 5e6, None, True, 10**12])
def test_what_is_no_budget_is_refused_in_python_too(budget):
    recipe = get_recipe("digits")
    for asked in (lambda: judge(SEED, budget), lambda: fitted(recipe, budget), lambda: design(budget)):
        with pytest.raises(BadInput, match=r"\(budget\): give a number of trainable parameters"):
            asked()


def test_numpy_s_whole_numbers_are_budgets_too():
    assert judge(SEED, np.int64(5_000_000)).fits
