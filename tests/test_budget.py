"""The limit holds to the unit, and what is offered instead fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import specs

from resfit.budget import FULL, departure, filled, judge, nearest_fit, parse_count, require_fit, short_count
from resfit.cost import cost
from resfit.errors import BadInput
from resfit.recipe import get_recipe, recipe_names
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
    fitting = nearest_fit(WIDE, 5_000_000)
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
    assert offered.spec == nearest_fit(recipe.spec, budget)
    assert judge(offered.spec, budget).fits


def test_a_verdict_says_how_much_of_the_budget_is_used():
    assert str(judge(SEED, 5_000_000)) == "4,977,226 parameters, 99.5% of the budget of 5,000,000: fits"


@pytest.mark.parametrize("budget", [100_000, 1_000_000, 20_000_000])
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_s_network_fills_a_budget_in_its_own_proportions(name, budget):
    """Narrower and wider ones alike; only what can be scaled differs."""
    spec = get_recipe(name).spec
    found = filled(spec, budget)
    assert FULL * budget <= cost(found).params <= budget
    assert departure(spec, found) <= 0.2 * len(set(widths(spec)))
    for wider, stage in zip(found.stages, spec.stages, strict=True):
        assert replace(wider, channels=stage.channels) == stage
    stem = spec.stem.channels if spec.stem.kind == "whiten" else found.stem.channels
    assert found.stem == replace(spec.stem, channels=stem)
    assert replace(found, stages=spec.stages, stem=spec.stem) == spec


@pytest.mark.parametrize("name", recipe_names())
def test_a_network_that_fills_its_budget_stays_as_it_is(name):
    spec = get_recipe(name).spec
    assert filled(spec, cost(spec).params) == spec


@pytest.mark.parametrize("budget", [1_000_000, 5_000_000])
def test_widths_stay_multiples_of_eight(budget):
    assert all(width % 8 == 0 for width in widths(filled(WIDE, budget)))


def test_equal_widths_stay_equal():
    first, *others = widths(filled(get_recipe("cifar10-94").spec, 1_000_000))[1:]
    assert first < min(others) and len(set(others)) == 1


@pytest.mark.parametrize(("scale", "expected"), [(1, 0.0), (3, 0.0)])
def test_widths_that_are_all_scaled_alike_depart_from_nothing(scale, expected):
    other = filled_by_hand(WIDE, [scale * width for width in widths(WIDE)])
    assert departure(WIDE, other) == pytest.approx(expected)


def test_a_width_doubled_alone_departs_by_as_much():
    """Of four different widths one is 3/4 of a doubling above their mean, the three others 1/4 below."""
    assert departure(WIDE, filled_by_hand(WIDE, [64, 64, 128, 256, 1024])) == pytest.approx(3 / 4 + 3 * 1 / 4)


def filled_by_hand(spec: NetSpec, new: list[int]) -> NetSpec:
    stages = tuple(replace(stage, channels=width) for stage, width in zip(spec.stages, new[1:], strict=True))
    return replace(spec, stem=replace(spec.stem, channels=new[0]), stages=stages)


def test_widths_leave_the_multiples_of_eight_only_where_nothing_else_fits():
    smallest = nearest_fit(WIDE, 5_000)
    assert any(width % 8 for width in widths(smallest))
    assert widths(smallest) == sorted(widths(smallest))


def test_a_whitening_stem_keeps_the_width_that_its_filters_need():
    spec = get_recipe("cifar10-94").spec
    fitting = nearest_fit(spec, 1_000_000)
    assert fitting.stem == spec.stem
    assert cost(fitting).params <= 1_000_000


def test_what_fits_already_is_its_own_nearest_fit():
    assert nearest_fit(SEED, 5_000_000) == SEED


def test_groups_and_widening_are_narrowed_with_the_rest():
    grouped = NetSpec.from_dict(
        {"stages": [{"blocks": 2, "channels": 256}] * 3, "block": "bottleneck", "groups": 32, "expansion": 2}
    )
    fitting = nearest_fit(grouped, 500_000)
    assert fitting.groups == 32
    assert 250_000 < cost(fitting).params <= 500_000
    pyramid = NetSpec.from_dict(
        {
            "stem": {"channels": 16},
            "stages": [{"blocks": 4, "channels": 16}] * 3,
            "widen": {"channels": 200},
            "block": "pyramid",
            "shortcut": {"kind": "avg-pad"},
        }
    )
    fitting = nearest_fit(pyramid, 500_000)
    assert 0 < fitting.widen.channels < 200
    assert 250_000 < cost(fitting).params <= 500_000


def test_where_one_channel_everywhere_is_too_much_there_is_no_fit():
    assert nearest_fit(WIDE, 100) is None
    with pytest.raises(BadInput, match="fewer stages or blocks"):
        require_fit(WIDE, 100)


def test_pad_shortcuts_can_be_narrowed_too():
    bottlenecks = {"stages": [{"blocks": 1, "channels": 16}], "block": "bottleneck", "shortcut": {"kind": "pad"}}
    spec = NetSpec.from_dict(bottlenecks)  # 64 channels in the stem and after expansion
    assert cost(nearest_fit(spec, cost(spec).params - 1)).params < cost(spec).params


@settings(max_examples=30, deadline=None)
@given(specs(), st.floats(0.01, 1.2))
def test_whatever_the_spec_an_offer_fits_and_is_valid(spec, share):
    budget = max(1, int(cost(spec).params * share))
    fitting = nearest_fit(spec, budget)
    assert fitting is None or cost(fitting).params <= budget
    assert fitting is None or NetSpec.from_dict(fitting.to_dict()) == fitting


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


@pytest.mark.parametrize("budget", [0, -5, "5M", 5e6, None])
def test_what_is_no_budget_is_refused_in_python_too(budget):
    for asked in (lambda: judge(SEED, budget), lambda: filled(SEED, budget), lambda: design(budget)):
        with pytest.raises(BadInput, match=r"\(budget\): give a number of trainable parameters"):
            asked()
