"""The solver's networks keep to the limits, fill the budget, cost what it says, and come in the stated order."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from functools import cache

import pytest

import resfit
from resfit import solver
from resfit.cost import cost
from resfit.errors import BadInput
from resfit.families import FAMILIES, ImageShape
from resfit.fitting import FULL
from resfit.net import build
from resfit.recipe import get_recipe
from resfit.solver import Design, design, fitted_design

BUDGETS = (500_000, 1_000_000, 5_000_000)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@cache
def designs(budget: int, family: str) -> list[Design]:
    return design(budget, family=family)


@pytest.mark.parametrize("budget", BUDGETS)
@EVERY_FAMILY
def test_every_network_fills_the_budget_and_none_exceeds_it(budget, family):
    for found in designs(budget, family):
        assert 0.98 * budget <= found.params <= budget
        price = cost(found.spec)
        assert (found.params, found.macs, found.activation_bytes) == (
            price.params,
            price.macs,
            price.activation_bytes,
        )


@pytest.mark.parametrize("budget", BUDGETS)
@EVERY_FAMILY
def test_networks_differ_and_come_by_departure(budget, family):
    found = designs(budget, family)
    assert len({each.spec for each in found}) == len({each.blocks for each in found}) == len(found)
    order = [(round(each.departure, 6), -each.params) for each in found]
    assert order == sorted(order)


@EVERY_FAMILY
def test_a_familys_first_network_is_built_at_its_price(family):
    first = designs(500_000, family)[0]
    assert sum(p.numel() for p in build(first.spec).parameters()) == first.params


@EVERY_FAMILY
def test_widths_come_in_steps_that_run_fast(family):
    for found in designs(5_000_000, family):
        assert all(block.channels % 8 == 0 for _, _, block in found.spec.plan())


def test_departure_counts_doublings_in_blocks_and_widths():
    found = {each.blocks: each for each in designs(5_000_000, "wrn")}
    for blocks, off in (((4, 4, 4), 0.0), ((2, 2, 2), 1.0), ((8, 8, 8), 1.0)):
        a, b, c = found[blocks].widths
        assert found[blocks].departure == pytest.approx(off + abs(math.log2(b / a / 2)) + abs(math.log2(c / b / 2)))


def test_the_first_network_is_the_published_one_where_the_budget_is_its_own():
    for family, widths in (("shake", (32, 64, 128)), ("wrn", (64, 128, 256))):  # 26 2x32d and WRN-28-4
        spec = FAMILIES[family].spec(ImageShape(), (4, 4, 4), widths)
        assert design(cost(spec).params, family=family)[0].spec == spec


def test_families_take_turns_in_order_of_what_they_are_known_to_reach():
    found = design(1_000_000, top=2)
    names = [each.family for each in found]
    turn = len(FAMILIES)
    assert set(names[:turn]) == set(names[turn:]) == set(FAMILIES)
    known = [FAMILIES[name].known for name in names[:turn]]
    accuracies = [each.accuracy if each else 0.0 for each in known]
    assert accuracies == sorted(accuracies, reverse=True)
    assert found[0] == designs(1_000_000, names[0])[0]
    assert found[turn] == designs(1_000_000, names[0])[1]


@pytest.mark.parametrize("limit", [300_000_000, 150_000_000])
def test_a_limit_on_macs_is_kept_and_the_budget_still_filled(limit):
    found = design(5_000_000, family="wrn", macs=limit)
    assert found
    for each in found:
        assert each.macs <= limit
        assert 4_900_000 <= each.params <= 5_000_000


def test_a_limit_that_does_not_bind_changes_nothing_of_the_first():
    assert design(5_000_000, family="wrn", macs=10**12)[0] == designs(5_000_000, "wrn")[0]


@pytest.mark.parametrize("images", [(28, 1, 10), (64, 3, 200), (8, 1, 10), (224, 3, 1000), (33, 3, 2)])
def test_other_images_and_classes_are_served(images):
    size, channels, classes = images
    found = design(2_000_000, family="resnet", size=size, channels=channels, classes=classes)
    for each in found:
        assert (each.spec.input.size, each.spec.input.channels, each.spec.num_classes) == images
        assert 1_960_000 <= each.params <= 2_000_000
        assert 4 <= each.spec.sizes()[1][-1] <= 11


def test_a_small_budget_is_filled_with_finer_widths():
    found = design(20_000, family="wrn")
    assert all(19_600 <= each.params <= 20_000 for each in found)
    assert any(width % 8 for each in found for width in each.widths)


def test_where_no_network_is_full_the_fullest_is_given():
    (only,) = design(5_000_000, family="wrn", macs=10_000_000)
    assert 0 < only.params < 4_900_000 and only.macs <= 10_000_000


@pytest.mark.parametrize(
    "limits",
    [
        {"budget": 20_000, "family": "resnext"},
        {"budget": 70_948, "family": "resnext", "size": 64, "classes": 100},
        {"budget": 25_000, "family": "bottleneck", "size": 64, "classes": 200},
        {"budget": 1_000_000, "family": "wrn", "macs": 17_000_000},
    ],
    ids=str,
)
def test_narrow_limits_are_filled_by_other_proportions(limits):
    found = design(**limits)
    assert all(FULL * limits["budget"] <= each.params <= limits["budget"] for each in found)
    assert all(each.macs <= limits.get("macs", each.macs) for each in found)


def test_a_given_network_just_over_a_limit_of_macs_is_scaled_at_once():
    spec = get_recipe("cifar10-94").spec
    whole = fitted_design(spec, 5_000_000)
    assert whole is not None
    began = time.process_time()
    found = fitted_design(spec, 5_000_000, macs=whole.macs - 1)
    assert found is not None and found.macs < whole.macs and found.params > 0.9 * whole.params
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"family": "vgg"}, r"unknown family \(vgg\): choose from .*wrn"),
        ({"family": "wnr"}, "did you mean wrn"),
        ({"budget": 10}, "no network of any family within 10 parameters"),
        ({"family": "wrn", "macs": 1000}, "no network of wrn within 5,000,000 parameters and 1,000 MACs"),
        ({"size": 3}, r"\(size\)"),
        ({"classes": 1}, r"\(num_classes\)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(limits, problem):
    with pytest.raises(BadInput, match=problem):
        design(**{"budget": 5_000_000, **limits})


def test_top_limits_each_family():
    assert resfit.design(500_000, family="wrn", top=2) == designs(500_000, "wrn")[:2]


def test_a_search_prices_no_more_networks_than_it_has_to(monkeypatch):
    priced, real = [], solver.cost
    monkeypatch.setattr(solver, "cost", lambda spec: priced.append(spec) or real(spec))
    design(5_000_000, top=1)
    assert len(priced) < 25 * sum(len(family.depths) for family in FAMILIES.values())


def test_all_families_take_less_than_a_second_of_a_processor_and_no_torch():
    code = (
        "import sys, time, resfit.cli\n"
        "assert resfit.cli.main(['design', '--budget', '5M', '--json']) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "print(time.process_time(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stderr) < 1.0
