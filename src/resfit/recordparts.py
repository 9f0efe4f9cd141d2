"""The parts of a run's record that are not scores: layer table, augmented images, sample predictions."""

from __future__ import annotations

from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from resfit.augment import augment, flip_coins
from resfit.cost import Cost
from resfit.data import Dataset
from resfit.pictures import png, png_grid
from resfit.recipe import AugmentConfig
from resfit.record import LayerRow, Sample

_SHOWN_SIDE = 64  # pixels: a page shows no more, and a record holds dozens of images


def layer_rows(price: Cost) -> list[LayerRow]:
    """Return the layer table of a network from its cost."""
    names = [field.name for field in fields(LayerRow)]
    return [LayerRow(**{name: getattr(layer, name) for name in names}) for layer in price.layers]


def _shown(images: Tensor) -> Tensor:
    """uint8 images [N, C, H, W] as a record shows them: of 64 pixels at the most, in grey where C is not 3."""
    images = images if images.shape[1] == 3 else images[:, :1]
    if images.shape[-1] <= _SHOWN_SIDE:
        return images
    return F.interpolate(images, size=(_SHOWN_SIDE, _SHOWN_SIDE), mode="bilinear", antialias=True)


def augmented_grid(data: Dataset, config: AugmentConfig, seed: int, fill: Tensor | None) -> str:
    """Draw up to 6 training images, one per row, as a base64 PNG: the original, then 8 augmented versions."""
    rows, columns = min(6, len(data.train)), 9
    index = torch.arange(rows).repeat_interleave(columns)
    images = data.train.images[index]
    seen = augment(
        images,
        config,
        torch.Generator().manual_seed(seed),
        coins=flip_coins(torch.arange(len(index)), seed),
        epoch=0,
        fill=None if fill is None else fill.cpu(),
    )
    seen[::columns] = images[::columns]
    return png_grid(_shown(seen), columns)


def samples(logits: Tensor, data: Dataset, count: int = 8) -> tuple[Sample, ...]:
    """Return the test images predicted with the highest confidence: up to `count` correct, then `count` wrong ones."""
    confidence, predicted = logits.softmax(1).max(1)
    right = predicted == data.test.labels
    chosen: list[int] = []
    for group in (right, ~right):
        members = group.nonzero().flatten()
        chosen += members[confidence[members].argsort(descending=True)][:count].tolist()
    return tuple(
        Sample(
            image=png(_shown(data.test.images[i : i + 1])[0]),
            label=data.classes[int(data.test.labels[i])],
            prediction=data.classes[int(predicted[i])],
            confidence=float(confidence[i]),
        )
        for i in chosen
    )
