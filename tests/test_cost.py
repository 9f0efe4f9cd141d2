"""A price is exact: golden counts of known networks, and the built module of any spec, layer by layer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.golden import PARAMS, REPORTED
from helpers.strategies import specs
from resfit.cost import cost
from resfit.layers import WhiteningConv
from resfit.net import build
from resfit.recipe import get_recipe
from resfit.spec import NetSpec

GOLDEN = json.loads(PARAMS.read_text())
PRICED = (nn.Conv2d, nn.Conv1d, nn.BatchNorm2d, nn.Linear, WhiteningConv)


@pytest.mark.parametrize(("name", "params"), GOLDEN["recipes"].items())
def test_a_recipe_has_the_count_that_its_report_gives(name, params):
    assert cost(get_recipe(name).spec).params == params


@pytest.mark.parametrize("name", GOLDEN["networks"])
def test_a_published_network_has_its_published_count(name):
    golden = GOLDEN["networks"][name]
    assert cost(NetSpec.from_dict(golden["spec"])).params == golden["params"]


def test_the_golden_counts_are_the_published_ones():
    """Typed from the reports and papers, so that regenerating the file cannot move them."""
    assert GOLDEN["recipes"] == REPORTED
    assert {name: network["params"] for name, network in GOLDEN["networks"].items()} == {
        "resnet20": 269_722,
        "resnet32": 464_154,
        "resnet44": 658_586,
        "resnet56": 853_018,
        "resnet110": 1_727_962,
        "resnet18": 11_173_962,
        "resnet34": 21_282_122,
        "resnet50": 23_520_842,
        "wrn-16-4": 2_748_890,
        "wrn-28-10": 36_479_194,
        "wrn-40-2": 2_243_546,
        "preact-resnet164": 1_703_258,
        "resnext-29-32x4d": 4_775_754,
        "resnext-29-8x64d": 34_426_698,
        "resnext-29-16x64d": 68_155_210,
        "shake-26-2x32d": 2_923_162,
        "shake-26-2x96d": 26_192_922,
        "pyramid-110-48": 1_739_730,
        "pyramid-110-84": 3_855_054,
        "pyramid-110-270": 28_485_477,
        "pyramid-164-270": 27_216_021,
    }


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("shake-26-2x32d", 2.9),  # Gastaldi 2017
        ("shake-26-2x96d", 26.2),
        ("resnext-29-8x64d", 34.4),  # Xie et al. 2017
        ("resnext-29-16x64d", 68.1),
        ("pyramid-110-48", 1.7),  # Han et al. 2017
        ("pyramid-110-84", 3.8),
    ],
)
def test_counts_that_papers_give_in_millions_are_these(name, millions):
    assert abs(GOLDEN["networks"][name]["params"] / 1e6 - millions) < 0.06


@settings(max_examples=60, deadline=None)
@given(specs())
def test_every_row_is_the_built_layer(spec):
    net, price = build(spec), cost(spec)
    built = {name: module for name, module in net.named_modules() if isinstance(module, PRICED)}
    assert {layer.name for layer in price.layers} == set(built)
    for layer in price.layers:
        assert layer.params == sum(p.numel() for p in built[layer.name].parameters()), layer.name
    assert price.params == sum(p.numel() for p in net.parameters())
    assert price.frozen == sum(m.weight.numel() for m in built.values() if isinstance(m, WhiteningConv))


@settings(max_examples=60, deadline=None)
@given(specs())
def test_macs_and_shapes_are_those_of_a_forward_pass(spec):
    net, price = build(spec).eval(), cost(spec)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in price.layers:
        net.get_submodule(layer.name).register_forward_hook(
            lambda _module, _inputs, output, name=layer.name: shapes.update({name: (*output.shape[1:], 1, 1)[:3]})
        )
    image = torch.zeros(1, spec.input.channels, spec.input.size, spec.input.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    assert shapes == {layer.name: layer.shape for layer in price.layers}
    assert counter.get_total_flops() == 2 * price.macs


def test_activation_bytes_are_those_of_the_outputs_in_fp32():
    price = cost(NetSpec.from_dict({"stages": [{"blocks": 1, "channels": 64}]}))
    assert price.layers[0].activation_bytes == 64 * 32 * 32 * 4
    assert price.activation_bytes == 6 * 64 * 32 * 32 * 4 + 10 * 4  # three convolutions, three norms, the head


def test_prices_records_reports_and_the_command_line_start_without_torch():
    modules = ["cost", "budget", "recipe", "record", "target", "report", "cli"]
    code = f"import sys, {', '.join(f'resfit.{name}' for name in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
