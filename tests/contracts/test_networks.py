"""The contract that every network keeps: each block kind, each option of the spec, each shipped recipe."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.layers import (
    Blur,
    DropPath,
    EfficientChannelAttention,
    Norm,
    PadShortcut,
    ShakeDrop,
    SqueezeExcite,
    TwoWayScale,
    WhiteningConv,
    mix_branches,
)
from resfit.net import Block, Network, ShiftShortcut, build
from resfit.recipe import InitConfig, get_recipe, recipe_names
from resfit.spec import LAYOUTS, ECASpec, NetSpec, SESpec, StemSpec

TINY: dict[str, Any] = {
    "input": {"size": 12},
    "stem": {"channels": 8},
    "stages": [{"blocks": 2, "channels": 8}, {"blocks": 2, "channels": 16}],
}
KINDS = tuple(LAYOUTS)
OPTIONS: dict[str, dict[str, Any]] = {
    "se": {"se": {"reduction": 4, "bias": True}},
    "pad": {"shortcut": {"kind": "pad"}},
    "wide shortcut": {"shortcut": {"kernel": 3}},
    "maxpool": {"downsample": "maxpool"},
    "biases": {"conv_bias": True, "head": {"bias": False, "scale": 0.1}},
    "no gain": {"norm": {"gain": False}},
    "whiten": {"stem": {"kind": "whiten", "kernel": 2, "channels": 24}},
    "window": {"pool": {"kind": "max", "size": 3}, "activation": "silu"},
    "inner": {"stages": [{"blocks": 2, "channels": 8, "inner": 4}, {"blocks": 2, "channels": 16, "inner": 24}]},
    "dropout": {"dropout": {"block": 0.2, "head": 0.2}, "activation": "gelu"},
    "path": {"dropout": {"path": 0.5}},
    "shakedrop": {"dropout": {"shakedrop": 0.5}},
    "eca": {"eca": {}},
    "blur": {"downsample": "blur"},
    "shift": {"shortcut": {"kind": "shift"}},
    "avg-pad": {"shortcut": {"kind": "avg-pad"}},
    "late": {"shortcut": {"kind": "late"}, "downsample": "maxpool", "dropout": {"block": 0.2}, "se": {"reduction": 4}},
    "widen": {"widen": {"channels": 12}},
    "shake": {"block": "act-first", "branches": 2, "shortcut": {"kind": "shift"}},
    "mean": {"branches": 2, "mix": "mean"},
    "groups": {"block": "bottleneck", "groups": 4, "expansion": 2},
}
SPECS = {
    **{kind: NetSpec.from_dict({**TINY, "block": kind}) for kind in KINDS},
    **{name: NetSpec.from_dict({**TINY, **option}) for name, option in OPTIONS.items()},
    **{name: get_recipe(name).spec for name in recipe_names()},
}
EVERY_NETWORK = pytest.mark.parametrize("name", SPECS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def built(spec: NetSpec, init: InitConfig | None = None, *, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build(spec, init)


@cache
def network(name: str) -> Network:
    """The named network, in evaluation mode, with running statistics of a batch; not to be changed."""
    net = built(SPECS[name]).train()
    outputs(net, images(SPECS[name], seed=2))
    return net.eval()


def images(spec: NetSpec, count: int = 2, *, seed: int = 1) -> Tensor:
    shape = (count, spec.input.channels, spec.input.size, spec.input.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny(**changes: Any) -> NetSpec:
    return NetSpec.from_dict({**TINY, **changes})


@cache
def logits(name: str) -> Tensor:
    return outputs(network(name), images(SPECS[name]))


@torch.no_grad()
def outputs(net: nn.Module, batch: Tensor) -> Tensor:
    return net(batch)


@EVERY_NETWORK
def test_logits_are_finite_and_one_row_an_image(name):
    assert logits(name).shape == (2, SPECS[name].num_classes)
    assert logits(name).isfinite().all()
    assert logits(name).std() > 0


@EVERY_NETWORK
def test_one_backward_pass_reaches_every_trained_parameter(name):
    net = built(SPECS[name]).train()
    F.cross_entropy(net(images(SPECS[name])), torch.tensor([0, 1])).backward()
    without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert any(p.grad.any() for p in net.parameters())


@EVERY_NETWORK
def test_a_state_dict_carries_the_whole_network(name):
    other = built(SPECS[name], seed=9).eval()
    assert not torch.equal(other.head.weight, network(name).head.weight)
    other.load_state_dict(network(name).state_dict())
    assert torch.equal(outputs(other, images(SPECS[name])), logits(name))


@EVERY_NETWORK
def test_in_evaluation_an_image_does_not_see_its_batch(name):
    alone = outputs(network(name), images(SPECS[name])[1:])
    torch.testing.assert_close(alone, logits(name)[1:], rtol=1e-4, atol=1e-4)


@EVERY_NETWORK
def test_memory_format_of_the_images_does_not_matter(name):
    batch = images(SPECS[name]).to(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs(network(name), batch), logits(name), rtol=1e-4, atol=1e-4)


@EVERY_NETWORK
@torch.no_grad()
def test_features_and_head_make_the_whole(name):
    features = network(name).forward_features(images(SPECS[name]))
    side = SPECS[name].sizes()[1][-1]
    assert features.shape[2:] == (side, side)
    assert torch.equal(network(name).forward_head(features), logits(name))
    pooled = network(name).forward_head(features, pre_logits=True)
    assert pooled.shape == (2, network(name).num_features)
    assert torch.equal(network(name).head(pooled) * SPECS[name].head.scale, logits(name))


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_fresh_classifier_reads_the_same_features(name):
    net = copy.deepcopy(network(name)).double()
    net.reset_classifier(7)
    assert (net.spec.num_classes, net.head.weight.dtype) == (7, torch.float64)
    found, batch = net(images(SPECS[name]).double()), images(SPECS[name]).double()
    assert found.shape == (2, 7)
    rebuilt = built(net.spec).double().eval()
    rebuilt.load_state_dict(net.state_dict())
    torch.testing.assert_close(rebuilt(batch), found)
    net.reset_classifier(0)
    assert torch.equal(net(batch), net.forward_head(net.forward_features(batch), pre_logits=True))
    assert sum(p.numel() for p in net.head.parameters()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SPECS if name not in recipe_names()])
def test_torch_compile_follows_the_network_without_a_break(name):
    """`eager` runs what was traced as it is; a break in the graph would be an error."""
    torch._dynamo.reset()
    net = copy.deepcopy(network(name))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(outputs(compiled, images(SPECS[name])), logits(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_compiled_network_answers_and_learns_as_it_does_itself(name):
    net = copy.deepcopy(network(name))
    compiled = torch.compile(net)
    torch.testing.assert_close(outputs(compiled, images(SPECS[name])), logits(name), rtol=1e-3, atol=1e-4)
    net.train()
    gradients = []
    for forward in (net, compiled):
        net.zero_grad()
        F.cross_entropy(forward(images(SPECS[name], 8)), torch.arange(8) % 10).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.999


@EVERY_KIND
def test_a_network_is_channels_last_and_begins_alike_from_the_same_seed(kind):
    a, b, other = built(SPECS[kind]), built(SPECS[kind]), built(SPECS[kind], seed=1)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in a.parameters() if p.ndim == 4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), other.parameters(), strict=True))


ORDER = {
    "basic": "conv norm act conv norm | act",
    "bottleneck": "conv norm act conv norm act conv norm | act",
    "preact": "norm act conv norm act conv |",
    "preact-bottleneck": "norm act conv norm act conv norm act conv |",
    "act-first": "act conv norm act conv norm |",
    "act-first-bottleneck": "act conv norm act conv norm act conv norm |",
    "pyramid": "norm conv norm act conv norm |",
    "pyramid-bottleneck": "norm conv norm act conv norm act conv norm |",
}


@EVERY_KIND
def test_a_block_has_its_papers_order_of_layers(kind):
    """The addition is the stroke. He et al. 2015 and 2016b, Gastaldi 2017, Han et al. 2017."""
    names = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.ReLU: "act"}
    for block in network(kind).stages.get_submodule("1"):
        branch = [block.norm1, block.act1, *block.branch]
        order = [names[type(m).__mro__[0 if type(m) in names else 1]] for m in branch if type(m) is not nn.Identity]
        after = ["act"] if isinstance(block.act, nn.ReLU) else []
        assert [*order, "|", *after] == ORDER[kind].split()


@EVERY_KIND
def test_a_block_adds_its_branch_to_its_shortcut(kind):
    """A shortcut that reshapes shares the activation that a block begins with (He et al. 2016b)."""
    for block in network(kind).stages.get_submodule("1"):
        x = torch.randn(2, block.branch.conv1.in_channels, 6, 6)
        kept = x.clone()
        with torch.no_grad():
            start = block.act1(block.norm1(x.clone()))
            shares = LAYOUTS[kind].act_first and len(block.shortcut) > 0
            expected = block.act(block.branch(start) + block.shortcut(start if shares else x))
            torch.testing.assert_close(block(x), expected)
        assert torch.equal(x, kept)  # nothing works in place on what a block is given


@EVERY_KIND
@pytest.mark.parametrize("stride", [1, 2])
def test_only_a_block_that_changes_shape_has_a_shortcut_layer(kind, stride):
    """With pad shortcuts as well: a stride alone changes the shape."""
    width = 8 if "bottleneck" not in kind else 2
    for shortcut in ("conv", "pad"):
        stages = [{"blocks": 1, "channels": width, "stride": stride}]
        (block,) = built(tiny(stages=stages, block=kind, shortcut={"kind": shortcut})).stages[0]
        assert (len(block.shortcut) > 0) == (stride > 1)
        assert block.shares == (LAYOUTS[kind].act_first and stride > 1)


@torch.no_grad()
def test_a_late_shortcut_hands_on_what_the_first_convolution_made():
    same, (narrow, last) = network("late").stages[0][0], network("late").stages[1]
    x = torch.randn(2, 8, 6, 6)
    assert not list(narrow.shortcut.parameters()) and not len(same.entry) and not len(last.entry)
    torch.testing.assert_close(same(x), F.relu(same.branch(x) + x))
    y = F.relu(narrow.entry.norm1(F.max_pool2d(narrow.entry.conv1(x), 2)))
    branch = narrow.branch
    torch.testing.assert_close(narrow(x), F.relu(branch.se(branch.norm2(branch.conv2(y))) + y))
    assert narrow(x).shape == (2, 16, 3, 3)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_pad_shortcut_is_the_strided_identity_and_zeros(stride):
    x = torch.randn(2, 3, 7, 7)
    out = PadShortcut(stride, 2)(x)
    side = -(-7 // stride)
    assert out.shape == (2, 5, side, side)
    for row in range(side):
        for column in range(side):
            assert torch.equal(out[:, :3, row, column], x[:, :, row * stride, column * stride])
    assert not out[:, 3:].any()


@EVERY_KIND
@pytest.mark.parametrize("option", ["plain", "se", "eca", "pad", "maxpool", "biases", "mean"])
def test_with_zeroed_last_norms_every_block_begins_as_its_shortcut(kind, option):
    spec = tiny(block=kind, **OPTIONS.get(option, {}))
    net = built(spec, InitConfig(zero_last_norm=True)).train()
    blocks = [module for module in net.modules() if isinstance(module, Block)]
    assert len(blocks) == 4
    branches = [branch for block in blocks for branch in block.branches]
    assert len(branches) == (8 if option == "mean" else 4)
    for branch in branches:
        assert not branch(torch.randn(2, branch.conv1.in_channels, 6, 6)).any()
    assert any(branch[0].weight.any() for branch in branches)


def test_he_filters_have_the_deviation_of_fan_out():
    net = built(tiny(stages=[{"blocks": 1, "channels": 64}]))
    weight = net.get_submodule("stages.0.0.branch.conv2").weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("narrow", "wide"), [(8, 8), (8, 16)])
def test_identity_filters_pass_each_input_on(narrow, wide):
    stages = [{"blocks": 1, "channels": narrow}, {"blocks": 1, "channels": wide, "stride": 1}]
    net = built(tiny(stages=stages), InitConfig(filters="identity"))
    conv = net.get_submodule("stages.1.0.branch.conv1")
    x = torch.randn(2, narrow, 6, 6)
    torch.testing.assert_close(conv(x)[:, :narrow], x)
    assert wide == narrow or conv(x)[:, narrow:].std() > 0


def test_excitation_gates_each_channel_by_a_number_between_zero_and_one():
    torch.manual_seed(0)
    se = SqueezeExcite(8, SESpec(reduction=4, bias=True))
    x = torch.rand(2, 8, 5, 5) + 0.5
    gates = se(x) / x
    torch.testing.assert_close(gates, gates[:, :, :1, :1].expand_as(gates))
    assert ((gates > 0) & (gates < 1)).all()
    assert gates[:, :, 0, 0].std(1).min() > 0  # channels differ
    assert not torch.allclose(gates[0], gates[1])  # and so do images
    nn.init.zeros_(se.excite.weight)
    nn.init.constant_(se.excite.bias, -50.0)
    assert se(x).abs().max() < 1e-20  # a closed gate lets nothing through


@pytest.mark.parametrize("rates", [{"block": 0.5}, {"head": 0.5}, {"path": 0.5}, {"shakedrop": 0.5}])
@EVERY_KIND
def test_dropout_acts_in_training_alone(kind, rates):
    net = built(tiny(block=kind, dropout=rates))
    batch = images(net.spec)
    assert not torch.equal(net.train()(batch), net.train()(batch))
    assert torch.equal(net.eval()(batch), net.eval()(batch))
    sure = built(tiny(block=kind)).train()
    assert torch.equal(sure(batch), sure(batch))


@EVERY_KIND
def test_branches_shake_in_training_alone(kind):
    shaken, still = built(tiny(block=kind, branches=2)), built(tiny(block=kind, branches=2, mix="mean"))
    batch = images(shaken.spec)
    assert torch.equal(shaken.eval()(batch), still.eval()(batch))
    assert not torch.equal(shaken.train()(batch), shaken.train()(batch))
    assert torch.equal(still.train()(batch), still.train()(batch))


def ones(count: int = 4000) -> Tensor:
    return torch.ones(count, 2, 3, 3, requires_grad=True)


def weights(x: Tensor) -> Tensor:
    """The one weight [N] of each image of a weighed map of ones; all its values are alike."""
    assert torch.equal(x, x[:, :1, :1, :1].expand_as(x))
    return x[:, 0, 0, 0].detach()


def test_shaken_branches_are_weighed_image_by_image_and_apart_on_the_way_back():
    torch.manual_seed(0)
    a, b = ones(), ones()
    out = mix_branches(a, 3 * b, shake=True)
    out.sum().backward()
    ahead, back = (3 - weights(out)) / 2, weights(a.grad)
    for weight in (ahead, back):
        assert weight.min() >= 0 and weight.max() <= 1
        assert weight.mean().item() == pytest.approx(1 / 2, abs=0.02)
        assert weight.std().item() == pytest.approx(12**-0.5, abs=0.01)
    torch.testing.assert_close(weights(b.grad) / 3, 1 - back)
    assert torch.corrcoef(torch.stack((ahead, back)))[0, 1].abs() < 0.06
    assert torch.equal(mix_branches(a, 3 * b, shake=False), torch.full_like(a, 2))


def test_a_two_way_scale_has_its_own_weight_back():
    x = ones(2)
    out = TwoWayScale.apply(x, torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 5.0))
    out.sum().backward()
    assert weights(out).tolist() == [3, 3]
    assert weights(x.grad).tolist() == [5, 5]


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_a_dropped_path_is_gone_for_its_image_and_what_is_kept_makes_up_for_it(rate):
    torch.manual_seed(0)
    x = ones()
    out = DropPath(rate)(x)
    out.sum().backward()
    kept = weights(out)
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 1 / (1 - rate)]))
    assert (kept == 0).float().mean().item() == pytest.approx(rate, abs=0.03)
    assert torch.equal(weights(x.grad), kept)
    assert torch.equal(DropPath(rate).eval()(x), x)


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_shakedrop_shakes_at_its_rate_and_evaluation_is_the_mean(rate):
    torch.manual_seed(0)
    x = ones()
    out = ShakeDrop(rate)(x)
    out.sum().backward()
    ahead, back = weights(out), weights(x.grad)
    shaken = ahead != 1
    assert torch.equal(shaken, back != 1)
    assert shaken.float().mean().item() == pytest.approx(rate, abs=0.03)
    assert ahead.min() >= -1 and ahead[shaken].max() <= 1
    assert back.min() >= 0
    assert ahead[shaken].mean().item() == pytest.approx(0, abs=0.08)
    assert back[shaken].mean().item() == pytest.approx(1 / 2, abs=0.05)
    assert weights(ShakeDrop(rate).eval()(x)).unique().item() == pytest.approx(1 - rate)


def test_a_networks_blocks_are_dropped_at_rates_that_rise():
    net = built(tiny(dropout={"path": 0.4}))
    rates = [module.rate for module in net.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 6, 7])
def test_a_blur_is_the_binomial_filter_with_its_edge_repeated(side, stride):
    x = torch.randn(2, 3, side, side)
    filters = torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])).div(16).expand(3, 1, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    torch.testing.assert_close(Blur(stride)(x), F.conv2d(padded, filters, stride=stride, groups=3))


def test_blurred_downsampling_hardly_minds_a_shift_of_one_pixel():
    """What it is for: of a checkerboard, strided pixels keep one colour, which a shift swaps."""
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float()[None, None]
    moved = board.roll(1, -1)
    assert (board[:, :, ::2, ::2] - moved[:, :, ::2, ::2]).abs().min() == 1
    assert (Blur(2)(board) - Blur(2)(moved))[:, :, 1:, 1:].abs().max() < 1e-6


def test_a_shift_shortcut_sees_every_pixel_of_a_diagonal():
    (_, _, _), (_, _, block) = tiny(stages=[{"blocks": 1, "channels": 8}] * 2, shortcut={"kind": "shift"}).plan()
    shift = ShiftShortcut(block, tiny())
    x = torch.randn(1, 8, 6, 6)
    out = shift(x)
    weight = torch.cat((shift.conv1.weight, shift.conv2.weight))[:, :, 0, 0]
    assert out.shape == (1, 8, 3, 3)
    torch.testing.assert_close(out[0, :4, 1, 1], weight[:4] @ x[0, :, 2, 2])
    torch.testing.assert_close(out[0, 4:, 1, 1], weight[4:] @ x[0, :, 3, 3])
    assert shift(x[:, :, :5, :5])[0, 4:, 2, 2].abs().max() == 0  # past the edge


def test_an_average_padded_shortcut_is_the_mean_of_windows_and_zeros():
    spec = tiny(stages=[{"blocks": 1, "channels": 8}, {"blocks": 1, "channels": 12}], shortcut={"kind": "avg-pad"})
    shortcut = built(spec).stages[1][0].shortcut
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(shortcut(x)[:, :8], F.avg_pool2d(x, 2))
    assert not shortcut(x)[:, 8:].any()


def test_neighbouring_channels_gate_one_another():
    eca = EfficientChannelAttention(8, ECASpec(kernel=3))
    nn.init.ones_(eca.conv.weight)
    x = torch.zeros(1, 8, 2, 2)
    x[0, 2] = 100.0
    x[0, :] += 1e-3
    gates = (eca(x) / x)[0, :, 0, 0]
    assert gates.tolist() == pytest.approx([0.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.5], abs=0.01)


def test_groups_keep_channels_apart():
    conv = built(NetSpec.from_dict({**TINY, **OPTIONS["groups"]})).get_submodule("stages.0.0.branch.conv2")
    x = torch.zeros(1, 8, 4, 4)
    x[:, :2] = 1.0
    reached = conv(x)[0].abs().sum((1, 2)) > 0
    assert reached.tolist() == [True] * 2 + [False] * 6


def test_identity_filters_pass_each_input_on_through_groups():
    spec = NetSpec.from_dict({**TINY, **OPTIONS["groups"]})
    conv = built(spec, InitConfig(filters="identity")).get_submodule("stages.0.1.branch.conv2")
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(conv(x), x)


def test_head_scale_multiplies_the_logits():
    plain, scaled = built(tiny()).eval(), built(tiny(head={"scale": 0.25})).eval()
    torch.testing.assert_close(scaled(images(plain.spec)), 0.25 * plain(images(plain.spec)))


def correlated_images() -> Tensor:
    """64 images [64, 3, 16, 16] whose neighbouring pixels and channels are alike, as photographs' are."""
    noise = torch.randn(64, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise, 5, stride=1) * 5 + noise.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_whitened_patches_are_uncorrelated_with_unit_variance(kernel):
    components, data = 3 * kernel**2, correlated_images()
    stem = WhiteningConv(3, StemSpec(kind="whiten", kernel=kernel, channels=2 * components))
    stem.whiten(data, eps=1e-6)
    out = stem(data).detach().permute(0, 2, 3, 1).reshape(-1, 2 * components)
    first, second = out[:, :components], out[:, components:]
    torch.testing.assert_close(first.T @ first / len(first), torch.eye(components), rtol=0, atol=0.02)
    torch.testing.assert_close(second, -first)


def test_whitening_filters_are_saved_but_not_trained():
    net = copy.deepcopy(network("whiten"))
    assert "stem.conv.weight" in net.state_dict()
    assert [name for name, _ in net.stem.named_parameters()] == ["conv.bias"]
    net.stem.conv.whiten(correlated_images())
    other = built(net.spec, seed=5)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.stem.conv.weight, net.stem.conv.weight)


def test_a_network_compiles_in_one_graph() -> None:
    """Nothing in it sends torch.compile back to Python: kernels of our own stay out of its way."""
    recipe = get_recipe("seed004")
    net = build(recipe.spec)
    found = torch._dynamo.explain(net)(torch.randn(2, 3, 32, 32))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_norms_have_the_momentum_and_eps_of_the_spec():
    norms = [m for m in built(tiny(norm={"eps": 1e-3, "momentum": 0.25})).modules() if isinstance(m, Norm)]
    assert norms
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.25)}


def test_dropout_is_of_whole_channels_behind_each_norm_of_a_block_and_of_features_in_the_head():
    net = built(tiny(dropout={"block": 0.25, "head": 0.4}))
    order = ["conv1", "norm1", "dropout1", "act1", "conv2", "norm2", "dropout2"]
    assert [name for name, _ in net.stages[0][0].branch.named_children()] == order
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout2d)] == [0.25] * 8
    assert (type(net.dropout), net.dropout.p) == (nn.Dropout, 0.4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_whitening_stem_of_single_pixels_has_right_gradients(stride: int) -> None:
    """With stride 2, torch's own gradient writes past its memory on CPUs (oneDNN, issue 6035)."""
    torch.manual_seed(0)
    stem = WhiteningConv(3, StemSpec(kind="whiten", kernel=1, channels=6, stride=stride))
    images = torch.randn(8, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    for _ in range(20):
        stem.zero_grad()
        out = stem(images)
        out.square().sum().backward()
    picked = images[:, :, ::stride, ::stride]
    wanted = torch.einsum("nchw,kc->nkhw", picked, stem.weight[:, :, 0, 0]) + stem.bias[None, :, None, None]
    assert torch.allclose(out, wanted, atol=1e-5)
    assert stem.bias.grad is not None
    assert torch.allclose(stem.bias.grad, 2 * wanted.sum((0, 2, 3)), rtol=1e-3, atol=1e-3)
