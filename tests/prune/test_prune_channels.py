"""A pruned network computes what the whole one would without the dropped channels, and fits its budget closely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.strategies import specs
from resfit.cost import cost
from resfit.errors import BadInput
from resfit.net import Network, build
from resfit.prune.channels import importance, shrink, wiring
from resfit.prune.widths import fit_widths
from resfit.recipe import get_recipe
from resfit.spec import NetSpec

WIDE: dict[str, Any] = {
    "input": {"size": 8},
    "stem": {"channels": 24},
    "stages": [{"blocks": 2, "channels": 24}, {"blocks": 2, "channels": 48}, {"blocks": 1, "channels": 64}],
}
KINDS = {
    "basic": {},
    "bottleneck": {"block": "bottleneck"},
    "preact": {"block": "preact"},
    "preact-bottleneck": {"block": "preact-bottleneck"},
    "se": {"se": {"reduction": 4, "bias": True}},
    "pad": {"shortcut": {"kind": "pad"}},
    "preact pad": {"shortcut": {"kind": "pad"}, "block": "preact"},
    "late": {"shortcut": {"kind": "late"}, "downsample": "maxpool"},
    "maxpool": {"downsample": "maxpool", "norm": {"gain": False}},
    "biases and a window": {"conv_bias": True, "pool": {"size": 2}},
    "whiten": {"stem": {"kind": "whiten", "kernel": 2, "channels": 24}},
}


def network(spec: NetSpec) -> Network:
    """A network whose norms and biases have moved from where they began, in evaluation mode."""
    torch.manual_seed(0)
    net = build(spec).train()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        net(images(spec, 16))
    return net.eval()


def images(spec: NetSpec, count: int = 3) -> Tensor:
    shape = (count, spec.input.channels, spec.input.size, spec.input.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def random_worth(net: Network) -> dict[str, Tensor]:
    worth = importance(net, [])
    return {name: torch.rand(len(value), generator=torch.Generator().manual_seed(2)) for name, value in worth.items()}


def kept_channels(net: Network, small: Network, worth: dict[str, Tensor]) -> dict[str, list[int]]:
    """What stays of each set by the rule as stated: the worthiest, and what a pad shortcut hands on."""
    wired = wiring(net.spec)
    widths = {link.writes: len(small.get_submodule(link.module).weight) for link in wired.links if link.writes}
    kept: dict[str, list[int]] = {}
    for name, width in widths.items():
        forced = kept.get(wired.padded.get(name, ""), [])
        order = [int(i) for i in worth[name].argsort(descending=True, stable=True) if int(i) not in forced]
        kept[name] = forced + order[: width - len(forced)]
    return kept


def masked(net: Network, kept: dict[str, list[int]]) -> Network:
    """The network whose readers have zeros for the weights of the dropped channels."""
    for link in wiring(net.spec).links:
        if link.reads:
            weight = net.get_submodule(link.module).weight.data
            inputs = weight.view(len(weight), len(worth_of := range(_width(net, link.reads))), -1)
            dropped = [i for i in worth_of if i not in kept[link.reads]]
            inputs[:, dropped] = 0
    for target, source in wiring(net.spec).padded.items():
        stage = net.get_submodule(target)
        dropped = [i for i in range(_width(net, source)) if i not in kept[source]]

        def blind(_: nn.Module, args: tuple[Tensor, ...], dropped: list[int] = dropped) -> tuple[Tensor, ...]:
            seen = args[0].clone()
            seen[:, dropped] = 0
            return (seen,)

        stage[0].shortcut.register_forward_pre_hook(blind)
    return net


def _width(net: Network, name: str) -> int:
    return next(len(net.get_submodule(link.module).weight) for link in wiring(net.spec).links if link.writes == name)


def assert_equals_the_masked(net: Network, small: Network, worth: dict[str, Tensor]) -> None:
    kept = kept_channels(net, small, worth)
    batch = images(net.spec)
    with torch.no_grad():
        whole, expected, found = net(batch), masked(net, kept)(batch), small(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.75, 0.4])
def test_a_pruned_network_computes_what_the_masked_one_would(name, share):
    net = network(NetSpec.from_dict({**WIDE, **KINDS[name]}))
    worth, budget = random_worth(net), int(share * cost(net.spec).params)
    spec = fit_widths(net.spec, worth, budget)
    small = shrink(net, spec, worth)
    assert small.spec == spec
    assert sum(p.numel() for p in small.parameters()) == cost(spec).params <= budget
    if net.spec.se:  # the hidden width follows, and its channels' sets are chosen likewise
        assert small.get_submodule("stages.2.0.branch.se.squeeze").out_features == spec.stages[2].channels // 4
    assert_equals_the_masked(net, small, worth)


def prunable(spec: NetSpec) -> NetSpec:
    """`spec` with the nearest values that pruning knows."""
    plain = {k: v for k, v in spec.to_dict().items() if k not in ("expansion", "groups", "branches", "widen", "eca")}
    for part in (plain, *plain["stages"]):
        if part.get("block"):
            part["block"] = part["block"].replace("act-first", "basic").replace("pyramid", "preact")
            part["block"] = part["block"].replace("basic-bottleneck", "bottleneck")
        if part.get("shortcut"):
            part["shortcut"]["kind"] = part["shortcut"]["kind"].replace("shift", "conv")
    return NetSpec.from_dict(plain)


@pytest.mark.parametrize(
    ("field", "value"), [("branches", 2), ("groups", 2), ("expansion", 2), ("eca", {}), ("widen", {"channels": 8})]
)
def test_what_pruning_does_not_know_is_named(field, value):
    plain = {"stages": [{"blocks": 1, "channels": 8}], "block": "bottleneck", field: value}
    with pytest.raises(BadInput, match=rf"spec\.{field} is not supported"):
        importance(build(NetSpec.from_dict(plain)), [])


@given(spec=specs(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_channel_set_of_any_network_can_be_cut(spec, data):
    """Any network, narrowed by one in a stage's inner channels: the solver's widths have no part in it."""
    try:
        spec = prunable(spec)
    except BadInput:  # pad shortcuts that another kind of block cannot have
        assume(False)
    net = network(spec)
    i = data.draw(st.integers(0, len(spec.stages) - 1))
    inner = spec.stages[i].inner or spec.stages[i].channels
    plain = spec.to_dict()
    plain["stages"][i]["inner"] = max(1, inner - 1)
    worth = random_worth(net)
    small = shrink(net, NetSpec.from_dict(plain), worth)
    kept, batch = kept_channels(net, small, worth), images(spec)
    with torch.no_grad():
        expected = masked(net, kept)(batch)
        torch.testing.assert_close(small(batch), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["seed000", "seed001d", "seed002", "seed003", "seed004", "cifar10-94"])
def test_a_shipped_network_meets_its_budget_closely_in_widths_that_run_fast(name):
    spec = get_recipe(name).spec
    worth = {key: torch.rand(len(value)) for key, value in importance(build(spec), []).items()}
    budget = cost(spec).params // 2
    pruned = fit_widths(spec, worth, budget)
    assert 0.97 * budget <= cost(pruned).params <= budget
    for old, new in zip(spec.stages, pruned.stages, strict=True):
        for before, after in ((old.channels, new.channels), (old.inner or old.channels, new.inner or new.channels)):
            assert after == before or after % 8 == 0
            assert before / 8 <= after <= before


def test_the_channels_that_the_loss_does_not_feel_go_first():
    net = network(NetSpec.from_dict(WIDE))
    dead = [1, 5, 6]
    net.get_submodule("stages.1.0.branch.conv2").weight.data[:, dead] = 0
    batch = images(net.spec, 32), torch.arange(32) % 10
    worth = importance(net, [batch])
    assert worth["stages.1.0.inner1"].argsort()[:3].sort().values.tolist() == dead
    assert not worth["stages.1.0.inner1"][dead].any()


def test_importance_is_the_squared_change_of_the_loss_to_first_order():
    net = network(NetSpec.from_dict(WIDE)).double()
    batch, labels = images(net.spec, 8).double(), torch.arange(8)
    worth = importance(net, [(batch, labels)])["stages.2"]
    weight, small_step = net.head.weight.data, 1e-6
    losses = []
    for change in (1.0, 1.0 - small_step):
        weight[:, 7] *= change
        losses.append(nn.functional.cross_entropy(net(batch), labels).item())
    assert worth[7].item() == pytest.approx(((losses[0] - losses[1]) / small_step) ** 2, rel=1e-2)


def test_a_budget_out_of_reach_is_refused_with_what_can_be_reached():
    spec = NetSpec.from_dict(WIDE)
    worth = random_worth(build(spec))
    with pytest.raises(BadInput, match=r"pruning cannot go below [\d,]+ parameters") as caught:
        fit_widths(spec, worth, 500)
    least = int("".join(filter(str.isdecimal, str(caught.value).partition(" parameters")[0])))
    assert cost(fit_widths(spec, worth, least)).params == least
