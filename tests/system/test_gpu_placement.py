"""A training step and an evaluation on a pretended GPU: fake tensors know shapes and devices, and hold no numbers.

An operation on tensors of two devices raises, as it would on the GPU. What makes sizes out of numbers (a policy's
draws) cannot be pretended, and autograd's engine asks for the device itself, so gradients are zeros.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from resfit.data.normalize import normalizer
from resfit.evaluate import predict_logits
from resfit.net import build
from resfit.recipe import get_recipe, recipe_names
from resfit.train import Trainer

GPU = torch.device("cuda:0")
N, BATCH = 24, 8
VARIANTS = {
    "sharpness-aware": {"optim.sam": {"rho": 0.05}},
    "mixup": {"augment.mixup": 0.2},
    "cutmix": {"augment.cutmix": 1.0},
    "ricap": {"augment.ricap": 0.3},
    "geometry": {"augment.rotate": 10, "augment.translate": 0.1, "augment.blur": 1.0, "augment.crop_mode": "zero"},
    "colours": {"augment.brightness": 0.2, "augment.contrast": 0.2, "augment.saturation": 0.2},
    "smaller images": {"train.resize": [[0.0, 24]]},
    "accumulation": {"train.accumulate": 2, "train.clip": 1.0},
}
NAMED = [name for name in recipe_names() if get_recipe(name).augment.policy == "none"]


@pytest.fixture
def pretending():
    sizes_from_numbers = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(shape_env=sizes_from_numbers) as mode:
        yield mode


def to_gpu(net: nn.Module) -> None:
    """Module.to cannot exchange real parameters for fake ones."""
    for module in net.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None:
                    there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)
                    tensors[name] = nn.Parameter(there) if isinstance(value, nn.Parameter) else there


def zero_gradients(net: nn.Module) -> None:
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def trainer(name: str, overrides: dict[str, object]) -> Trainer:
    """A trainer that has got to its second epoch."""
    recipe = get_recipe(name, {"train.compile": False, "train.batch_size": BATCH, **overrides})
    shape = (recipe.spec.input.channels, recipe.spec.input.size, recipe.spec.input.size)
    with torch.utils._python_dispatch._disable_current_modes():
        net = build(recipe.spec)
    to_gpu(net)
    made = Trainer(
        net=net,
        recipe=recipe,
        images=torch.zeros(N, *shape, dtype=torch.uint8, device=GPU),
        labels=torch.zeros(N, dtype=torch.int64, device=GPU),
        normalize=normalizer([0.5] * shape[0], [0.2] * shape[0], GPU),
        seed=0,
        precision="bf16",
        fill=torch.zeros(shape[0], dtype=torch.uint8, device=GPU),
        epoch=1,
    )
    made.scaler.scale = lambda loss: SimpleNamespace(backward=lambda: zero_gradients(net))
    return made


def check(made: Trainer) -> None:
    made.net.train()
    made._freeze()
    made._set_rates(0.5)
    made.under_way = made._begin_epoch()
    for progress in (0.0, 0.99):
        order = torch.arange(BATCH, device=GPU)
        loss_sum, hits = made._gradients([order] * made.recipe.train.accumulate, progress)
        made._step()
        assert loss_sum.device == hits.device == GPU
    assert all(parameter.device == GPU for parameter in made.net.parameters())
    assert all(value.device == GPU for o in made.optimizers for kept in o.state.values() for value in tensors_of(kept))
    plain, averaged = predict_logits(made.net, made.images, made.normalize, tta="flip+shift", tta_share=0.5)
    assert plain.device == averaged.device == torch.device("cpu")


def tensors_of(kept: dict[str, object]) -> list[torch.Tensor]:
    """An optimizer's buffers; counters of steps stay on the host."""
    return [value for value in kept.values() if isinstance(value, torch.Tensor) and value.ndim]


@pytest.mark.parametrize("name", NAMED)
def test_a_recipe_keeps_to_its_gpu(name, pretending):
    check(trainer(name, {}))


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_an_ingredient_keeps_to_its_gpu(overrides, pretending):
    check(trainer("seed001d", overrides))


def test_a_tensor_left_behind_is_noticed(pretending):
    made = trainer("seed001d", {})
    made.labels = made.labels.cpu()
    with pytest.raises(RuntimeError, match=r"device"):
        check(made)
