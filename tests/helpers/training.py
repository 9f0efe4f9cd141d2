"""Trainers on made-up images that can be learned, and whether two of them end with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from resfit.data.normalize import normalizer
from resfit.net import build
from resfit.recipe import Recipe
from resfit.train import Trainer

CPU = torch.device("cpu")


def images_and_labels(recipe: Recipe, count: int = 256) -> tuple[Tensor, Tensor]:
    """Learnable images: a bright row for the first half of the classes, a bright column for the others."""
    generator = torch.Generator().manual_seed(5)
    size, classes = recipe.spec.input.size, recipe.spec.num_classes
    labels = torch.randint(0, classes, (count,), generator=generator)
    images = torch.randint(0, 100, (count, recipe.spec.input.channels, size, size), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        half, line = divmod(label, (classes + 1) // 2)
        (image.mT if half else image)[:, line % size, :] += 120
    return images.to(torch.uint8), labels


def trainer(
    recipe: Recipe,
    seed: int = 0,
    kind: Callable[[Recipe], nn.Module] | None = None,
    count: int = 256,
    **options: Any,
) -> Trainer:
    """A trainer of the recipe's network, or of what `kind` makes of the recipe, from a seed."""
    torch.manual_seed(seed)
    images, labels = images_and_labels(recipe, count)
    channels = recipe.spec.input.channels
    return Trainer(
        net=kind(recipe) if kind else build(recipe.spec, recipe.init),
        recipe=recipe,
        images=images,
        labels=labels,
        normalize=normalizer([0.3] * channels, [0.3] * channels, CPU),
        seed=seed,
        **options,
    )


def weights(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and statistics as they are now."""
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two networks' are the same to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Linear(nn.Module):
    """A network without batch statistics, so that batches of any size give the same gradient."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.head = nn.Linear(recipe.spec.input.channels * recipe.spec.input.size**2, recipe.spec.num_classes)
        self.sides: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sides.append(images.shape[-1])
        full = torch.nn.functional.interpolate(images, size=(8, 8))
        logits: Tensor = self.head(full.flatten(1))
        return logits
