"""Training on a real GPU: the same result as on a CPU, no waiting within a step, and an exact way on from a state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from helpers.training import images_and_labels, weights
from resfit.data.normalize import normalizer
from resfit.evaluate import predict_logits
from resfit.net import build
from resfit.recipe import Recipe, get_recipe
from resfit.train import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

GPU, CPU = torch.device("cuda"), torch.device("cpu")
EVERYTHING: dict[str, Any] = {
    "optim.name": "muon",
    "optim.nesterov": True,
    "average.name": "ema",
    "average.decay": 0.9,
    "augment.flip": "alternating",
    "augment.cutout": 2,
    "train.skip_easy": 0.3,
    "train.drop_last": True,
}


def trainer(recipe: Recipe, device: torch.device = GPU, count: int = 256, **options: Any) -> Trainer:
    torch.manual_seed(0)
    images, labels = images_and_labels(recipe, count)
    channels = recipe.spec.input.channels
    return Trainer(
        net=build(recipe.spec, recipe.init).to(device),
        recipe=recipe,
        images=images.to(device),
        labels=labels.to(device),
        normalize=normalizer([0.3] * channels, [0.3] * channels, device),
        seed=0,
        **options,
    )


def test_a_gpu_trains_as_the_cpu_does(tiny: Recipe) -> None:
    there, here = trainer(tiny), trainer(tiny, CPU)
    for a, b in zip(there.epochs(), here.epochs(), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-2)
    outputs = [predict_logits(t.net, t.images, t.normalize, tta="flip+shift")[1] for t in (there, here)]
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_with_everything_on(tiny: Recipe, precision: str) -> None:
    recipe = tiny.replace({**EVERYTHING, "train.epochs": 8, "train.batch_size": 32})
    losses = [result.loss for result in trainer(recipe, precision=precision).epochs()]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["cifar10-94", "cifar10-96", "seed001d"])
def test_the_host_never_waits_within_a_step(name: str) -> None:
    run = trainer(get_recipe(name, {"train.batch_size": 32}), count=64, precision="bf16")
    run.train_epoch()
    run.under_way = run._begin_epoch()
    groups = run._step_groups(run.under_way.order)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run._gradients(groups[0], 0.9)
        run._step()
        run._average(0.9)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_it_goes_on_from_a_state_as_if_never_stopped(tiny: Recipe) -> None:
    recipe = tiny.replace({**EVERYTHING, "spec.dropout.head": 0.2})
    whole = trainer(recipe, precision="bf16")
    whole.train_epoch()
    state = copy.deepcopy(whole.state_dict())
    first = whole.train_epoch()
    other = trainer(recipe, precision="bf16")
    other.load_state_dict(state)
    second = other.train_epoch()
    assert first.loss == pytest.approx(second.loss, rel=1e-3)
    assert torch.equal(whole.generator.get_state(), other.generator.get_state())
    for name, value in weights(whole.net).items():
        torch.testing.assert_close(weights(other.net)[name], value, rtol=1e-2, atol=1e-2)


def test_compiled_training_is_the_same_training(tiny: Recipe) -> None:
    plain, compiled = trainer(tiny), trainer(tiny.replace({"train.compile": True, "train.drop_last": True}))
    assert compiled.warm_up() > 0
    assert list(compiled.epochs())[-1].loss == pytest.approx(list(plain.epochs())[-1].loss, rel=0.05)
