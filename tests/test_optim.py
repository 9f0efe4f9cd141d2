"""Groups partition the parameters, optimizers descend, schedules are torch's where torch has them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from resfit.net import build
from resfit.optim import (
    Muon,
    check_gradients,
    lr_factor,
    make_optimizers,
    orthogonalize,
    parameter_groups,
)
from resfit.recipe import InitConfig, OptimConfig, ScheduleConfig, get_recipe, recipe_names
from resfit.spec import NetSpec

SPEC = NetSpec.from_dict(
    {
        "input": {"channels": 1, "size": 8},
        "stem": {"channels": 8},
        "stages": [{"blocks": 1, "channels": 8}, {"blocks": 1, "channels": 16}],
        "se": {"reduction": 4},
        "conv_bias": True,
        "num_classes": 3,
    }
)


@pytest.mark.parametrize("name", recipe_names())
def test_every_trained_parameter_is_in_exactly_one_group_of_one_optimizer(name):
    recipe = get_recipe(name)
    with torch.device("meta"):
        net = build(recipe.spec)
    grouped = [p for o in make_optimizers(net, recipe.optim) for group in o.param_groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in net.parameters()}


def test_groups_are_filters_the_head_and_norms_and_biases():
    net = build(SPEC)
    names = {id(p): name for name, p in net.named_parameters()}
    groups = {g["name"]: {names[id(p)] for p in g["params"]} for g in parameter_groups(net, OptimConfig())}
    assert groups["head"] == {"head.weight"}
    assert "stages.0.0.branch.conv1.weight" in groups["filters"]
    assert "stages.0.0.branch.se.squeeze.weight" in groups["filters"]
    assert groups["norm_and_bias"] == {name for name, p in net.named_parameters() if p.ndim == 1}


def test_frozen_parameters_are_in_no_group_and_empty_groups_are_left_out():
    net = build(SPEC)
    net.head.weight.requires_grad_(False)
    assert [g["name"] for g in parameter_groups(net, OptimConfig())] == ["filters", "norm_and_bias"]


def test_a_group_with_its_own_rate_decays_as_fast_as_the_others():
    config = OptimConfig(lr=0.1, weight_decay=5e-4, bias_lr=6.4, head_lr=0.05)
    groups = {g["name"]: g for g in parameter_groups(build(SPEC), config)}
    assert {name: g["lr"] for name, g in groups.items()} == {"filters": 0.1, "head": 0.05, "norm_and_bias": 6.4}
    assert [g["lr"] * g["weight_decay"] for g in groups.values()] == pytest.approx([5e-5] * 3)


def test_norms_and_biases_can_be_spared_the_decay():
    config = OptimConfig(weight_decay=5e-4, decay_norm_and_bias=False)
    decays = {g["name"]: g["weight_decay"] for g in parameter_groups(build(SPEC), config)}
    assert decays == {"filters": 5e-4, "head": 5e-4, "norm_and_bias": 0.0}


RATES = {"sgd": 0.1, "adam": 0.02, "adamw": 0.02, "adadelta": 3.0, "muon": 0.05}


@pytest.mark.parametrize("name", RATES)
def test_each_optimizer_learns_a_small_problem(name):
    torch.manual_seed(0)
    net = build(SPEC).train()
    images, labels = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    optimizers = make_optimizers(net, OptimConfig(name=name, lr=RATES[name], nesterov=name == "muon"))
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_settings_reach_the_optimizer():
    net = build(SPEC)
    (adam,) = make_optimizers(net, OptimConfig(name="adam", betas=(0.8, 0.9), eps=1e-3))
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.9), 1e-3)
    (adadelta,) = make_optimizers(net, OptimConfig(name="adadelta", rho=0.7))
    assert adadelta.defaults["rho"] == 0.7
    (sgd,) = make_optimizers(net, OptimConfig(momentum=0.7, nesterov=True))
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.7, True)
    muon, rest = make_optimizers(net, OptimConfig(name="muon", lr=0.2, momentum=0.6, sgd_momentum=0.8))
    assert all(p.ndim == 4 for group in muon.param_groups for p in group["params"])
    assert (muon.defaults["momentum"], rest.defaults["momentum"]) == (0.6, 0.8)
    assert muon.dtype == torch.float32
    assert make_optimizers(net, OptimConfig(name="muon", lr=0.2), "bf16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 576), (256, 16), (16, 144), (128, 64)])
def test_orthogonalizing_brings_singular_values_near_one(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (found,) = orthogonalize([matrix.to(dtype)])
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.float())
    assert 0.3 < values.min() <= values.max() < 1.7
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert F.cosine_similarity(found.float().flatten(), (u @ v).flatten(), dim=0) > 0.95  # directions stay


def test_orthogonalizing_zeros_gives_zeros():
    (found,) = orthogonalize([torch.zeros(4, 8)])
    assert not found.any()


def test_orthogonalizing_is_three_steps_of_a_quintic_of_each_matrix_on_its_own():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 40), (40, 8), (16, 16), (8, 9), (16, 90)]
    matrices = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for matrix, found in zip(matrices, orthogonalize(matrices), strict=True):
        u, values, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
        for _ in range(3):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        torch.testing.assert_close(found, (u * values) @ v)


def test_the_rest_beside_muon_may_go_without_momentum():
    net = build(SPEC)
    _, rest = make_optimizers(net, OptimConfig(name="muon", sgd_momentum=0.0))
    before = net.head.weight.detach().clone()
    net.head.weight.grad = torch.ones_like(before)
    rest.step()
    torch.testing.assert_close(net.head.weight.detach(), before - 0.1 * (1 + 5e-4 * before))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_keeps_filters_at_the_norm_of_the_root_of_their_count(layout):
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 8, 3, 3, generator=generator).to(memory_format=layout))
    muon = Muon([weight], lr=1e-6, momentum=0.6)
    weight.grad = torch.randn(16, 8, 3, 3, generator=generator)
    muon.step()
    assert weight.norm().item() == pytest.approx(16**0.5, rel=1e-4)


def test_muon_moves_filters_by_the_orthogonalized_nesterov_direction():
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 2, 3, 3, generator=generator))
    muon, momentum, expected = Muon([weight], lr=0.1, momentum=0.6), torch.zeros(4, 18), weight.detach().clone()
    for _ in range(3):
        gradient = torch.randn(4, 2, 3, 3, generator=generator)
        weight.grad = gradient.clone()
        muon.step()
        momentum = 0.6 * momentum + gradient.view(4, 18)
        (update,) = orthogonalize([gradient.view(4, 18) + 0.6 * momentum])
        expected = expected * (4**0.5 / expected.norm()) - 0.1 * update.view_as(expected)
    torch.testing.assert_close(weight.detach(), expected)


def test_muon_starts_from_filters_that_begin_at_zero():
    spec = NetSpec.from_dict({**SPEC.to_dict(), "block": "preact"})
    net = build(spec, InitConfig(zero_last_norm=True))
    F.cross_entropy(net(torch.randn(6, 1, 8, 8)), torch.arange(6) % 3).backward()
    for optimizer in make_optimizers(net, OptimConfig(name="muon", lr=0.05)):
        optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


def by_torch(scheduler: type, epochs: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, factors = scheduler(optimizer, **options), []
    for _ in range(epochs):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


AS_TORCH = {
    "step": ({"name": "step", "period": 7, "gamma": 0.5}, lr_scheduler.StepLR, {"step_size": 7, "gamma": 0.5}),
    "multistep": (
        {"name": "multistep", "milestones": (10, 20), "gamma": 0.1},
        lr_scheduler.MultiStepLR,
        {"milestones": [10, 20], "gamma": 0.1},
    ),
    "cosine": (
        {"name": "cosine", "final": 0.01},
        lr_scheduler.CosineAnnealingLR,
        {"T_max": 30, "eta_min": 0.01},
    ),
    "restarts": (
        {"name": "restarts", "period": 4, "growth": 2, "final": 0.1},
        lr_scheduler.CosineAnnealingWarmRestarts,
        {"T_0": 4, "T_mult": 2, "eta_min": 0.1},
    ),
    "constant": ({"name": "constant"}, lr_scheduler.ConstantLR, {"factor": 1.0}),
    "warm-up": (
        {"name": "constant", "warmup": 5, "start": 0.2},
        lr_scheduler.LinearLR,
        {"start_factor": 0.2, "total_iters": 5},
    ),
}


@pytest.mark.parametrize(("config", "scheduler", "options"), AS_TORCH.values(), ids=AS_TORCH)
def test_a_schedule_is_torchs_own(config, scheduler, options):
    ours = [lr_factor(ScheduleConfig(**config), epoch, 30) for epoch in range(30)]
    assert ours == pytest.approx(by_torch(scheduler, 30, **options), abs=1e-9)


def test_one_cycle_is_torchs_own():
    """torch counts steps from zero: 30 % of 30 steps peak at step 8, and step 29 is the last."""
    options = {"max_lr": 1.0, "total_steps": 30, "pct_start": 0.3, "div_factor": 25, "final_div_factor": 100}
    config = ScheduleConfig(name="onecycle", warmup=8, start=1 / 25, final=1 / 2500)
    ours = [lr_factor(config, step, 29) for step in range(30)]
    expected = by_torch(lambda o, **kw: lr_scheduler.OneCycleLR(o, **kw, cycle_momentum=False), 29, **options)
    assert ours[:29] == pytest.approx(expected)
    assert ours[29] == pytest.approx(1 / 2500)


@pytest.mark.parametrize(
    ("config", "points"),
    [
        ({"name": "triangular", "warmup": 2, "final": 0.1}, {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.55, 10: 0.1}),
        ({"name": "cosine", "warmup": 2}, {1: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
        ({"name": "cosine", "period": 5}, {0: 1.0, 2.5: 0.5, 5: 0.0, 9: 0.0}),
        ({"name": "restarts", "period": 2, "warmup": 1}, {0.5: 0.5, 1: 1.0, 2: 0.5, 3: 1.0}),
        ({"name": "step", "period": 2.5}, {2.4: 1.0, 2.5: 0.1, 5: 0.01}),
        ({"name": "onecycle", "warmup": 5}, {0: 0.0, 2.5: 0.5, 5: 1.0, 7.5: 0.5, 10: 0.0}),
    ],
)
def test_a_schedule_passes_its_known_points(config, points):
    factors = {epoch: lr_factor(ScheduleConfig(**config), epoch, 10) for epoch in points}
    assert factors == pytest.approx(points, abs=1e-9)


def test_rates_are_set_as_factors_of_every_groups_peak():
    optimizers = make_optimizers(build(SPEC), OptimConfig(name="muon", lr=0.2, bias_lr=4.0))
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    for factor in (0.5, 0.25, 1.0):
        optimizers.set_rates(factor)
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        assert rates == [factor * peak for peak in peaks]
    assert sorted(set(peaks)) == [0.2, 4.0]


def test_a_parameter_that_no_gradient_reaches_is_named():
    net = nn.ModuleDict({"used": nn.Linear(1, 1), "idle": nn.Linear(1, 1, bias=False)})
    net["used"](torch.ones(1, 1)).sum().backward()
    with pytest.raises(AssertionError, match=r"no gradient reached idle\.weight"):
        check_gradients(net)
    check_gradients(net["used"])


def test_an_overflow_in_one_optimizer_skips_the_step_of_all_and_leaves_nothing_behind():
    """A fused SGD that is told of an overflow makes its momentum of memory that nobody has written to."""
    config = OptimConfig(name="muon", lr=0.1, momentum=0.9)
    steps = []
    for overflowed in (True, False):
        torch.manual_seed(0)
        net = build(SPEC)
        optimizers = make_optimizers(net, config, "fp16")
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        if overflowed:
            for p in net.parameters():
                p.grad = torch.full_like(p, torch.inf if p.ndim == 4 else 1.0)
            scaler.scale(torch.zeros(()))
            scaler.step(optimizers)
            scaler.update()
            assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
            assert not any(optimizer.state for optimizer in optimizers)
            assert scaler.get_scale() == 2.0
        for p in net.parameters():
            p.grad = torch.full_like(p, scaler.get_scale() if overflowed else 4.0)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizers)
        steps.append(dict(net.named_parameters()))
    for name, p in steps[0].items():
        torch.testing.assert_close(p, steps[1][name])
        assert not torch.equal(p, before[name])
