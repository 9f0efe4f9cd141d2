"""Averages are the means that they say they are, and batch norms fit the weights that are evaluated."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from helpers.training import equal, trainer, weights
from resfit.averaging import WeightAverage, estimate_statistics
from resfit.recipe import AverageConfig, Recipe

SWA = {"average.name": "swa", "average.start": 0.5, "schedule.final": 0.2, "train.epochs": 4}


def states(recipe: Recipe, every_step: bool = False) -> list[dict[str, Tensor]]:
    """The weights of a training without an average, after each epoch or each step."""
    run, kept = trainer(recipe.replace({"average.name": "none"})), []
    if every_step:
        step = run._step
        run._step = lambda: (step(), kept.append(weights(run.net)))
    for _ in run.epochs():
        if not every_step:
            kept.append(weights(run.net))
    return kept


def test_an_exponential_average_follows_weights_and_buffers():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(net, AverageConfig(name="ema", decay=0.9))
    expected: dict[str, Tensor] = {}
    for step in range(4):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
            net[1].running_mean.fill_(math.sqrt(step))
        average.step_ended(net, 0.1, epoch_ended=False)
        current = {k: v.clone() for k, v in net.state_dict().items() if v.is_floating_point()}
        expected = {k: 0.9 * expected.get(k, v) + 0.1 * v for k, v in current.items()}
    averaged = average.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value)


@pytest.mark.parametrize(("every", "taken"), [("epoch", slice(1, None)), ("step", slice(3, None))])
def test_swa_is_the_mean_of_the_weights_from_its_start_on(tiny: Recipe, every: str, taken: slice) -> None:
    """Four epochs of two steps: half of the training is over after epoch 2, or step 4."""
    recipe = tiny.replace({**SWA, "average.every": every})
    kept = states(recipe, every_step=every == "step")[taken]
    assert len(kept) == {"epoch": 3, "step": 5}[every]
    run = trainer(recipe)
    list(run.epochs())
    for name, value in run.evaluated.named_parameters():
        torch.testing.assert_close(value.detach(), torch.stack([state[name] for state in kept]).mean(0))


def test_before_its_start_the_weights_themselves_are_evaluated(tiny: Recipe) -> None:
    run = trainer(tiny.replace(SWA))
    run.train_epoch()
    assert run.evaluated is run.net
    run.train_epoch()
    assert run.evaluated is not run.net


def test_statistics_are_those_of_the_data() -> None:
    """Of the images themselves for a norm that sees them, batches of unequal size weighted by their images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.ReLU(), nn.BatchNorm2d(3, momentum=0.3)).train()
    net[0].running_mean.fill_(float("nan"))
    images = torch.randn(40, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1) + 5
    batches, before = images.split(16), torch.get_rng_state()
    estimate_statistics(net, iter(batches))
    torch.testing.assert_close(net[0].running_mean, images.mean((0, 2, 3)))
    variances = sum(len(batch) * batch.var((0, 2, 3)) for batch in batches) / 40
    torch.testing.assert_close(net[0].running_var, variances)
    after = [batch_normalized(batch).relu() for batch in batches]  # nothing is dropped
    torch.testing.assert_close(
        net[3].running_mean, sum(len(batch) * batch.mean((0, 2, 3)) for batch in after) / 40, rtol=1e-4, atol=1e-4
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert (net[0].momentum, net[3].momentum, net.training, net[0].training) == (0.1, 0.3, True, True)


def batch_normalized(images: Tensor) -> Tensor:
    return torch.nn.functional.batch_norm(images, None, None, training=True)


def test_swas_statistics_are_estimated_when_it_is_evaluated_and_not_twice(tiny: Recipe) -> None:
    run = trainer(tiny.replace(SWA))
    list(run.epochs())
    stale, of_training = weights(run.average.module), weights(run.net)
    evaluated = weights(run.evaluated)
    norm = "stem.norm.running_mean"
    assert torch.equal(stale[norm], of_training[norm])
    assert not torch.equal(evaluated[norm], stale[norm])
    expected = copy.deepcopy(run.average.module)
    estimate_statistics(expected, run._batches_apart())
    assert equal(evaluated, weights(expected))
    with torch.no_grad():
        run.evaluated.get_buffer(norm).zero_()
    assert not run.evaluated.get_buffer(norm).any()


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_looking_at_the_average_changes_no_training(tiny: Recipe, every: str) -> None:
    recipe = tiny.replace({**SWA, "average.every": every, "spec.dropout.head": 0.2, "augment.mixup": 0.2})
    watched = trainer(recipe)
    for _ in watched.epochs():
        assert watched.evaluated is not None
    plain = trainer(recipe)
    list(plain.epochs())
    assert equal(weights(watched.net), weights(plain.net))
    assert equal(weights(watched.evaluated), weights(plain.evaluated))
