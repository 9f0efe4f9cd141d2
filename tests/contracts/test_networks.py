"""The contract that every network keeps: each block kind, each option of the spec, each shipped recipe."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.net import FrozenConv, Network, PadShortcut, PostActBlock, PreActBlock, SqueezeExcite, build
from resfit.recipe import InitConfig, get_recipe, recipe_names
from resfit.spec import NetSpec, SESpec, StemSpec

TINY: dict[str, Any] = {
    "input": {"size": 12},
    "stem": {"channels": 8},
    "stages": [{"blocks": 2, "channels": 8}, {"blocks": 2, "channels": 16}],
}
KINDS = ("basic", "bottleneck", "preact", "preact-bottleneck")
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


@EVERY_KIND
def test_a_network_is_channels_last_and_begins_alike_from_the_same_seed(kind):
    a, b, other = built(SPECS[kind]), built(SPECS[kind]), built(SPECS[kind], seed=1)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in a.parameters() if p.ndim == 4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), other.parameters(), strict=True))


@EVERY_KIND
def test_a_block_adds_its_branch_to_its_shortcut_in_its_own_order(kind):
    """He et al. 2015 acts after the addition; 2016b ahead of each convolution, shared with a shortcut that reshapes."""
    for block in network(kind).stages.get_submodule("1"):
        x = torch.randn(2, block.branch.conv1.in_channels, 6, 6)
        with torch.no_grad():
            if isinstance(block, PreActBlock):
                active = F.relu(block.norm1(x))
                reshapes = len(block.shortcut) > 0
                expected = block.branch(active) + (block.shortcut(active) if reshapes else x)
            else:
                expected = F.relu(block.branch(x) + block.shortcut(x))
            torch.testing.assert_close(block(x.clone()), expected)


@EVERY_KIND
@pytest.mark.parametrize("stride", [1, 2])
def test_only_a_block_that_changes_shape_has_a_shortcut_layer(kind, stride):
    """With pad shortcuts as well: a stride alone changes the shape."""
    width = 8 if "bottleneck" not in kind else 2
    for shortcut in ("conv", "pad"):
        stages = [{"blocks": 1, "channels": width, "stride": stride}]
        (block,) = built(tiny(stages=stages, block=kind, shortcut={"kind": shortcut})).stages[0]
        assert (len(block.shortcut) > 0) == (stride > 1)
        assert getattr(block, "shared", stride > 1) == (stride > 1)


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
@pytest.mark.parametrize("option", ["plain", "se", "pad", "maxpool", "biases"])
def test_with_zeroed_last_norms_every_block_begins_as_its_shortcut(kind, option):
    spec = tiny(block=kind, **OPTIONS.get(option, {}))
    net = built(spec, InitConfig(zero_last_norm=True)).train()
    blocks = [module for module in net.modules() if isinstance(module, PostActBlock | PreActBlock)]
    assert len(blocks) == 4
    for block in blocks:
        x = torch.randn(2, block.branch.conv1.in_channels, 6, 6)
        assert not block.branch(x.clone()).any()
    assert any(block.branch[0].weight.any() for block in blocks)


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


@pytest.mark.parametrize("rates", [{"block": 0.5}, {"head": 0.5}])
@EVERY_KIND
def test_dropout_acts_in_training_alone(kind, rates):
    net = built(tiny(block=kind, dropout=rates))
    batch = images(net.spec)
    assert not torch.equal(net.train()(batch), net.train()(batch))
    assert torch.equal(net.eval()(batch), net.eval()(batch))
    sure = built(tiny(block=kind)).train()
    assert torch.equal(sure(batch), sure(batch))


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
    stem = FrozenConv(3, StemSpec(kind="whiten", kernel=kernel, channels=2 * components))
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
