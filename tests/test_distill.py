"""What a student learns from teachers is the formula's gradient, and nothing of the teachers changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.training import Linear, equal, trainer, weights
from resfit.distill import Renormalized, distillation_loss, soft_targets
from resfit.net import build
from resfit.recipe import DistillConfig, Recipe
from resfit.train import Trainer

DISTILL = {"distill": {"teacher": "nowhere", "weight": 0.7, "temperature": 3.0}}


def teacher(recipe: Recipe, seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    net = build(recipe.spec).train()
    net(torch.randn(16, 1, 8, 8))
    return net


def random_logits(seed: int) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_its_gradient_is_t_times_the_difference_of_probabilities(temperature: float) -> None:
    """d/dz of T² KL(p || softmax(z / T)) is T (softmax(z / T) - p), a mean over images."""
    logits, soft = random_logits(0).float().requires_grad_(), (random_logits(1) / temperature).softmax(1).float()
    loss = distillation_loss(logits, soft, temperature)
    predicted = (logits / temperature).softmax(1)
    expected = (soft * (soft.log() - predicted.log())).sum(1).mean() * temperature**2
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, temperature * (predicted - soft).detach() / 6)


def test_a_student_that_agrees_has_nothing_to_learn() -> None:
    logits = random_logits(0).float()
    assert distillation_loss(logits, (logits / 3).softmax(1), 3.0).item() == pytest.approx(0, abs=1e-6)


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def test_several_teachers_are_averaged_in_probabilities() -> None:
    first, second = random_logits(0), random_logits(1)
    soft = soft_targets([Fixed(first), Fixed(second)], torch.zeros(6), 2.0)
    expected = ((first.float() / 2).softmax(1) + (second.float() / 2).softmax(1)) / 2
    torch.testing.assert_close(soft, expected)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))


def test_a_teacher_sees_images_under_its_own_normalization() -> None:
    images = torch.rand(2, 3, 4, 4)
    mean, std, own_mean, own_std = (torch.rand(3) + 0.1 for _ in range(4))

    def normalized(m: Tensor, s: Tensor) -> Tensor:
        return (images - m.view(-1, 1, 1)) / s.view(-1, 1, 1)

    given, own = (mean.tolist(), std.tolist()), (own_mean.tolist(), own_std.tolist())
    behind = Renormalized(nn.Identity(), given=given, own=own)
    torch.testing.assert_close(behind(normalized(mean, std)), normalized(own_mean, own_std))


def test_a_trainers_step_follows_both_losses(tiny: Recipe) -> None:
    step = {"optim.momentum": 0.0, "optim.weight_decay": 0.0, "schedule.name": "constant", "augment.crop": 0}
    recipe = tiny.replace({**step, **DISTILL, "train.epochs": 1, "train.batch_size": 256, "train.label_smoothing": 0.1})
    known = teacher(recipe)
    run = trainer(recipe, kind=Linear, teachers=[known])
    inputs = run.normalize(run.images)
    weight, bias = (p.detach().clone().requires_grad_() for p in (run.net.head.weight, run.net.head.bias))
    logits = F.linear(inputs.flatten(1), weight, bias)
    with torch.no_grad():
        soft = (known.eval()(inputs) / 3).softmax(1)
    of_teacher = 9 * (soft * (soft.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    loss = 0.3 * F.cross_entropy(logits, run.labels, label_smoothing=0.1) + 0.7 * of_teacher
    gradient = torch.autograd.grad(loss, weight)[0]
    assert run.train_epoch().loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(run.net.head.weight, weight - 0.1 * gradient)


def test_a_teacher_sees_the_students_images_in_evaluation_mode_and_does_not_change(tiny: Recipe) -> None:
    recipe = tiny.replace({**DISTILL, "augment.cutmix": 1.0, "train.resize": [[0.0, 6], [0.5, 8]]})
    known, seen, taken = teacher(recipe), [], []
    known.register_forward_pre_hook(lambda module, images: seen.append((module.training, images[0].clone())))
    before = weights(known)
    run = trainer(recipe, teachers=[known])
    run.net.register_forward_pre_hook(lambda module, images: taken.append(images[0].clone()))
    list(run.epochs())
    assert len(seen) == len(taken) == 6
    assert all(torch.equal(theirs, own) for (_, theirs), own in zip(seen, taken, strict=True))
    assert not any(training for training, _ in seen)
    assert equal(weights(known), before)
    assert not any(p.requires_grad for p in known.parameters())


VARIANTS: dict[str, dict[str, Any]] = {
    "alone": {},
    "with sam and accumulation": {"optim.sam": {"rho": 0.1}, "train.accumulate": 2, "train.batch_size": 64},
    "with ricap and swa": {"augment.ricap": 0.3, "average.name": "swa", "average.start": 0.5, "schedule.final": 0.1},
    "with swa of every step": {"average.name": "swa", "average.start": 0.2, "average.every": "step"},
    "autoaugment": {"augment.policy": "autoaugment", "augment.crop": 0},
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_same_bits_twice_and_on_resume(tiny: Recipe, overrides: dict[str, Any]) -> None:
    """Resumed from the middle of the third epoch of four, each of two steps."""
    recipe = tiny.replace({**DISTILL, "train.epochs": 4, "spec.dropout.head": 0.1, **overrides})
    teachers = [teacher(recipe), teacher(recipe, 6)]
    states: list[dict[str, Any]] = []

    def whole() -> Trainer:
        run = trainer(recipe, teachers=teachers, on_step=lambda *_: states.append(copy.deepcopy(run.state_dict())))
        for _ in run.epochs():
            assert run.evaluated is not None
        return run

    runs = [whole(), whole()]
    resumed = trainer(recipe, seed=0, teachers=teachers)
    torch.manual_seed(123)  # whatever happened in between
    resumed.load_state_dict(states[4])
    assert [result.epoch for result in resumed.epochs()] == [3, 4]
    for other in (runs[1], resumed):
        assert equal(weights(runs[0].net), weights(other.net))
        assert equal(weights(runs[0].evaluated), weights(other.evaluated))


def test_one_teacher_or_a_list() -> None:
    assert DistillConfig(teacher="a").teachers == ("a",)
    assert DistillConfig(teacher=("a", "b")).teachers == ("a", "b")


def test_a_recipe_with_teachers_comes_back(tiny: Recipe) -> None:
    for teachers in ("a", ["a", "b"]):
        recipe = tiny.replace({"distill.teacher": teachers})
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert replace(recipe, distill=None) == tiny
