"""A sharpness-aware step is the one that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.training import Linear, equal, trainer, weights
from resfit import sharpness
from resfit.recipe import Recipe, SamConfig
from resfit.sharpness import perturbed


class Quadratic(nn.Module):
    """Loss (a x² + b y²) / 2 of its weight (x, y)."""

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([x, y], dtype=torch.float64))
        self.curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def loss(self) -> Tensor:
        return (self.curvature * self.weight**2).sum() / 2


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_sam_takes_the_gradient_a_step_of_rho_uphill(scale: float) -> None:
    """At (3, 1) the gradient is (3, 4), of length 5: rho 0.5 leads to (3.3, 1.4), whose gradient is (3.3, 5.6)."""
    net = Quadratic(3, 1)
    (scale * net.loss()).backward()
    with perturbed(net, SamConfig(rho=0.5)):
        assert net.weight.tolist() == pytest.approx([3.3, 1.4])
        assert net.weight.grad is None
        net.loss().backward()
    assert net.weight.tolist() == [3, 1]
    assert net.weight.grad.tolist() == pytest.approx([3.3, 5.6])


def test_adaptive_sam_measures_in_units_of_each_weight() -> None:
    """With T = (3, 1) + 0.01: T g = (9.03, 4.04), and e = rho T² g / |T g|."""
    net = Quadratic(3, 1)
    net.loss().backward()
    length = (9.03**2 + 4.04**2) ** 0.5
    with perturbed(net, SamConfig(rho=0.5, adaptive=True)):
        expected = [3 + 0.5 * 3.01 * 9.03 / length, 1 + 0.5 * 1.01 * 4.04 / length]
        assert net.weight.tolist() == pytest.approx(expected)


def test_the_step_is_shared_by_all_parameters_and_a_flat_place_stays() -> None:
    first, second = Quadratic(3, 0), Quadratic(0, 1)
    net = nn.ModuleList([first, second])
    (first.loss() + second.loss()).backward()
    with perturbed(net, SamConfig(rho=0.5)):
        assert [*first.weight.tolist(), *second.weight.tolist()] == pytest.approx([3.3, 0, 0, 1.4])
    first.weight.grad = torch.zeros_like(first.weight)
    with perturbed(first, SamConfig()):
        assert first.weight.tolist() == [3, 0]


def test_weights_and_norms_come_back_after_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    images = torch.randn(4, 1, 5, 5)
    net(images).square().sum().backward()
    before = weights(net)
    with pytest.raises(KeyboardInterrupt), perturbed(net, SamConfig()):
        net(images)
        raise KeyboardInterrupt
    assert equal(weights(net), before)
    assert net[1].track_running_stats


SAM = {"optim.sam": {"rho": 0.1}}
LEARNING: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd, adaptive": {"optim.sam.adaptive": True},
    "adam": {"optim.name": "adam", "optim.lr": 0.01},
    "muon": {"optim.name": "muon", "optim.lr": 0.05, "optim.nesterov": True},
}


@pytest.mark.parametrize("overrides", LEARNING.values(), ids=LEARNING)
def test_every_optimizer_learns_with_it(tiny: Recipe, overrides: dict[str, Any]) -> None:
    recipe = tiny.replace({"augment.crop": 0, "train.epochs": 6, "train.batch_size": 32, **SAM, **overrides})
    assert list(trainer(recipe).epochs())[-1].accuracy > 0.8


def test_running_statistics_see_the_weights_themselves_and_each_batch_once(tiny: Recipe) -> None:
    """After one step they are what they are without it, as both begin from the same weights and images."""
    one = {"train.epochs": 1, "train.batch_size": 256}
    sharp, usual = trainer(tiny.replace({**one, **SAM})), trainer(tiny.replace(one))
    sharp.train_epoch(), usual.train_epoch()
    assert all(torch.equal(a, b) for a, b in zip(sharp.net.buffers(), usual.net.buffers(), strict=True))
    assert not equal(weights(sharp.net), weights(usual.net))


def test_a_trainers_step_is_sams(tiny: Recipe) -> None:
    step = {"optim.momentum": 0.0, "optim.weight_decay": 0.0, "schedule.name": "constant", "augment.crop": 0}
    recipe = tiny.replace({**step, "train.epochs": 1, "train.batch_size": 256, **SAM})
    run = trainer(recipe, kind=Linear)
    inputs = run.normalize(run.images)
    weight, bias = (p.detach().clone().requires_grad_() for p in (run.net.head.weight, run.net.head.bias))

    def gradient(w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        loss = nn.functional.cross_entropy(nn.functional.linear(inputs.flatten(1), w, b), run.labels)
        return torch.autograd.grad(loss, (w, b))

    at_w = gradient(weight, bias)
    length = torch.cat([g.flatten() for g in at_w]).norm()
    uphill = gradient(weight + 0.1 * at_w[0] / length, bias + 0.1 * at_w[1] / length)
    run.train_epoch()
    torch.testing.assert_close(run.net.head.weight, weight - 0.1 * uphill[0])
    torch.testing.assert_close(run.net.head.bias, bias - 0.1 * uphill[1])


@pytest.mark.parametrize("extra", [{}, {"train.clip": 0.05}], ids=str)
def test_accumulated_batches_are_perturbed_together(tiny: Recipe, extra: dict[str, Any]) -> None:
    plain = {"augment.crop": 0, "train.epochs": 2, **SAM, **extra}
    one = trainer(tiny.replace({**plain, "train.batch_size": 128}), kind=Linear)
    many = trainer(tiny.replace({**plain, "train.batch_size": 32, "train.accumulate": 4}), kind=Linear)
    list(one.epochs()), list(many.epochs())
    torch.testing.assert_close(one.net.head.weight, many.net.head.weight)


def test_clip_bounds_the_gradient_that_is_followed(tiny: Recipe) -> None:
    step = {"optim.lr": 1.0, "optim.momentum": 0.0, "optim.weight_decay": 0.0, "schedule.name": "constant"}
    run = trainer(tiny.replace({**step, **SAM, "train.clip": 0.01, "train.epochs": 1, "train.batch_size": 256}))
    before = torch.cat([p.detach().flatten().clone() for p in run.net.parameters()])
    run.train_epoch()
    moved = (torch.cat([p.detach().flatten() for p in run.net.parameters()]) - before).norm()
    assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_learn_with_it(tiny: Recipe, precision: str) -> None:
    recipe = tiny.replace({"augment.crop": 0, "train.epochs": 6, "train.batch_size": 32, **SAM})
    assert list(trainer(recipe, precision=precision).epochs())[-1].accuracy > 0.8


def test_an_overflow_in_fp16_skips_the_step_and_keeps_the_weights(tiny: Recipe) -> None:
    run = trainer(tiny.replace({"train.epochs": 1, "train.batch_size": 256, **SAM}), precision="fp16")
    run.scaler._init_scale = 2.0**120
    before = {name: p.detach().clone() for name, p in run.net.named_parameters()}
    run.train_epoch()
    assert run.scaler.get_scale() < 2.0**120
    assert all(torch.equal(p, before[name]) for name, p in run.net.named_parameters())
    assert all(value.isfinite().all() for value in run.net.state_dict().values())


def test_weights_are_back_when_there_is_no_memory_for_the_climb(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    net = trainer(tiny).net
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    climb = sharpness._climb

    def half_a_climb(weights: list[torch.nn.Parameter], config: SamConfig) -> None:
        climb(weights[: len(weights) // 2], config)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sharpness, "_climb", half_a_climb)
    with pytest.raises(torch.OutOfMemoryError), sharpness.perturbed(net, SamConfig()):
        pass
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tiny: Recipe) -> None:
    plain, compiled = trainer(tiny.replace(SAM)), trainer(tiny.replace({**SAM, "train.compile": True}))
    assert compiled.warm_up() > 0
    a, b = list(plain.epochs()), list(compiled.epochs())
    assert b[-1].loss == pytest.approx(a[-1].loss, rel=1e-3)
    for name, value in plain.net.state_dict().items():
        torch.testing.assert_close(compiled.net.state_dict()[name], value, rtol=1e-2, atol=1e-2)
    tracked = compiled.net.get_buffer("stem.norm.num_batches_tracked")
    assert tracked == plain.net.get_buffer("stem.norm.num_batches_tracked") == 6  # once a batch
