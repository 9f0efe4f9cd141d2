"""The network of a shape that fills a budget: never over it, and in its own proportions."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.strategies import specs
from resfit import fitting
from resfit.cost import cost
from resfit.fitting import FULL, departure, fitted_spec
from resfit.recipe import get_recipe, recipe_names
from resfit.spec import NetSpec

WIDE = NetSpec.from_dict({"stages": [{"blocks": 2, "channels": c} for c in (64, 128, 256, 512)]})  # 11,173,962


def widths(spec: NetSpec) -> list[int]:
    return [spec.stem.channels, *(stage.channels for stage in spec.stages)]


@pytest.mark.parametrize("budget", [100_000, 1_000_000, 20_000_000])
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_s_network_fills_a_budget_in_its_own_proportions(name, budget):
    """Narrower and wider ones alike; only what can be scaled differs."""
    spec = get_recipe(name).spec
    found = fitted_spec(spec, budget)
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
    assert fitted_spec(spec, cost(spec).params) == spec


@pytest.mark.parametrize("budget", [1_000_000, 5_000_000])
def test_widths_stay_multiples_of_eight(budget):
    assert all(width % 8 == 0 for width in widths(fitted_spec(WIDE, budget)))


def test_equal_widths_stay_equal():
    first, *others = widths(fitted_spec(get_recipe("cifar10-94").spec, 1_000_000))[1:]
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
    smallest = fitted_spec(WIDE, 5_000)
    assert any(width % 8 for width in widths(smallest))
    assert widths(smallest) == sorted(widths(smallest))


def test_a_whitening_stem_keeps_the_width_that_its_filters_need():
    spec = get_recipe("cifar10-94").spec
    fitting = fitted_spec(spec, 1_000_000)
    assert fitting.stem == spec.stem
    assert cost(fitting).params <= 1_000_000


def test_groups_and_widening_are_narrowed_with_the_rest():
    grouped = NetSpec.from_dict(
        {"stages": [{"blocks": 2, "channels": 256}] * 3, "block": "bottleneck", "groups": 32, "expansion": 2}
    )
    fitting = fitted_spec(grouped, 500_000)
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
    fitting = fitted_spec(pyramid, 500_000)
    assert 0 < fitting.widen.channels < 200
    assert 250_000 < cost(fitting).params <= 500_000


def test_where_one_channel_everywhere_is_too_much_there_is_none():
    assert fitted_spec(WIDE, 100) is None


def test_pad_shortcuts_can_be_narrowed_too():
    bottlenecks = {"stages": [{"blocks": 1, "channels": 16}], "block": "bottleneck", "shortcut": {"kind": "pad"}}
    spec = NetSpec.from_dict(bottlenecks)  # 64 channels in the stem and after expansion
    assert cost(fitted_spec(spec, cost(spec).params - 1)).params < cost(spec).params


@settings(max_examples=30, deadline=None)
@given(specs(), st.floats(0.01, 1.2))
def test_whatever_the_spec_an_offer_fits_and_is_valid(spec, share):
    budget = max(1, int(cost(spec).params * share))
    fitting = fitted_spec(spec, budget)
    assert fitting is not None or share < 1
    assert fitting is None or cost(fitting).params <= budget
    assert fitting is None or NetSpec.from_dict(fitting.to_dict()) == fitting


def network(*channels: int, blocks: int = 2, **fields: object) -> NetSpec:
    stages = [{"blocks": blocks, "channels": width} for width in channels]
    return NetSpec.from_dict({"stem": {"channels": channels[0]}, "stages": stages, **fields})


def test_any_network_that_fills_its_budget_stays_as_it_is():
    spec = network(10, 20, 44)
    assert fitted_spec(spec, cost(spec).params) == fitted_spec(spec, int(cost(spec).params / 0.99)) == spec


@pytest.mark.parametrize(
    ("spec", "budget"),
    [
        (network(64, 128, 256, 512, block="bottleneck", groups=32, expansion=2), 1_000_000),
        (network(64, 128, 256, 512, block="bottleneck", groups=32, expansion=2), 2_000_000),
        (network(16, 16, 16, blocks=9, block="pyramid", widen={"channels": 154, "multiple": 8}), 10_000_000),
        (get_recipe("cifar10-94", {"spec.shortcut.kind": "pad"}).spec, 300_000),  # no stage below the stem's 24
        (network(16, 32, 64, shortcut={"kind": "shift"}), 2_000),  # no stage below 2
        (network(64, 128, 256, se={"reduction": 16}, norm={"gain": False}), 400_000),
    ],
)
def test_what_fills_a_budget_is_found_among_networks_that_are_none(spec, budget):
    assert FULL * budget <= cost(fitted_spec(spec, budget)).params <= budget


def test_a_fractional_expansion_hides_no_network():
    """Odd widths make none of its networks, and a multiple of 4 times 1.5 does."""
    stages = [{"blocks": 4, "channels": 96}, {"blocks": 4, "channels": 128}, {"blocks": 4, "channels": 64, "inner": 16}]
    plain = {"block": "act-first", "expansion": 1.5, "shortcut": {"kind": "shift"}, "stem": {"channels": 16}}
    spec = NetSpec.from_dict({**plain, "stages": [*stages, {"blocks": 1, "channels": 8}]})
    found = fitted_spec(spec, 233_243)
    assert found is not None and cost(found).params <= 233_243


def test_groups_bind_only_where_they_must():
    stages = [{"blocks": 2, "channels": width, "inner": 2 * width} for width in (64, 128, 256)]
    found = fitted_spec(NetSpec.from_dict({"stages": stages, "block": "bottleneck", "groups": 32}), 100_000)
    assert 0.8 * 100_000 <= cost(found).params <= 100_000


def test_deep_networks_take_no_time_to_speak_of():
    began = time.perf_counter()
    assert fitted_spec(network(16, 32, 64, blocks=200), 1_000_000) is not None
    assert time.perf_counter() - began < 10  # 0.7 s alone; some hundred prices of 1,200 layers


def test_of_networks_that_rank_alike_one_is_taken():
    """Widths that may be exchanged give other networks of the same price and departure."""
    spec = network(16, 16, blocks=1)
    found = [(0.0, 0.1, -5, spec), (0.0, 0.1, -5, network(8, 8, blocks=1))]
    assert min(found, key=fitting._rank)[-1] == spec
