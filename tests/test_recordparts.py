"""What a record shows: the layer table, images as training sees them, the surest predictions."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from helpers.tiny_recipe import TINY
from resfit.data import Dataset, load_dataset
from resfit.data.images import Images
from resfit.recipe import AugmentConfig, Recipe
from resfit.recordparts import augmented_grid, samples


def decoded(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def dataset(images: torch.Tensor, labels: list[int]) -> Dataset:
    part = Images(images=images, labels=torch.tensor(labels))
    digits = load_dataset(Recipe.from_dict(TINY).data, size=8, channels=1)
    return Dataset(**{**vars(digits), "train": part, "test": part})


def test_samples_are_the_surest_right_ones_and_then_the_surest_wrong_ones() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    logits = torch.zeros(5, 10)
    for image, (taken, by) in enumerate([(1, 1.0), (2, 9.0), (3, 3.0), (4, 5.0), (5, 2.0)]):
        logits[image, taken] = by
    found = samples(logits, dataset(images, [1, 2, 0, 0, 5]), count=2)
    assert [(one.label, one.prediction) for one in found] == [("2", "2"), ("5", "5"), ("0", "4"), ("0", "3")]
    assert [int(decoded(one.image)[0, 0]) for one in found] == [1, 4, 3, 2]
    assert found[0].confidence > found[1].confidence


def test_a_grid_begins_each_row_with_the_image_as_it_is() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = decoded(augmented_grid(dataset(images, [0] * 6), AugmentConfig(flip="random", cutout=4), 0, None))
    assert grid.shape == (6 * 9 - 1, 9 * 9 - 1, 3)
    for row in range(6):
        assert np.array_equal(grid[9 * row : 9 * row + 8, :8], images[row].permute(1, 2, 0).numpy())
    assert not np.array_equal(grid[:8, :8], grid[:8, 9:17])


def test_large_images_are_shown_smaller_and_other_channels_in_grey() -> None:
    images = torch.randint(0, 256, (2, 5, 200, 200), dtype=torch.uint8)
    data = dataset(images, [0, 1])
    assert decoded(augmented_grid(data, AugmentConfig(), 0, None)).shape == (2 * 65 - 1, 9 * 65 - 1)
    assert decoded(samples(torch.eye(2, 10), data)[0].image).shape == (64, 64)
