from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from resfit.data import load_dataset
from resfit.errors import BadInput
from resfit.recipe import DataConfig

DIGITS = DataConfig(name="digits", val=0.1)


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (8, 3), (12, 1)])
def test_digits_contract(check_contract: Callable[..., None], size: int, channels: int) -> None:
    data = load_dataset(DIGITS, size=size, channels=channels)
    check_contract(data, size=size, channels=channels, counts=(1293, 144, 360))
    assert data.classes == tuple("0123456789")
    assert (data.train.images == data.train.images[:, :1]).all()


def test_full_scale_ink_is_white() -> None:
    images = load_dataset(DIGITS, size=8, channels=1).train.images
    assert images.min() == 0 and images.max() == 255
    assert set(images.unique().tolist()) == {round(value * 255 / 16) for value in range(17)}


def test_each_split_is_stratified() -> None:
    data = load_dataset(DIGITS, size=8, channels=1)
    for part in (data.train, data.val, data.test):
        shares = part.labels.bincount(minlength=10) / len(part)
        assert (shares - 0.1).abs().max() < 0.01


def test_statistics_are_those_of_the_training_part_alone() -> None:
    data = load_dataset(DIGITS, size=8, channels=1)
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()], abs=1e-12)
    assert data.std == pytest.approx([pixels.std(correction=0).item()], abs=1e-12)


def test_images_keep_their_labels_and_stay_recognisable() -> None:
    data = load_dataset(DataConfig(name="digits", val=0), size=32, channels=1)
    distances = torch.cdist(data.test.images.flatten(1).float(), data.train.images.flatten(1).float())
    nearest = data.train.labels[distances.argmin(1)]
    assert (nearest == data.test.labels).float().mean() > 0.96


def test_the_seed_moves_validation_but_never_the_test_set() -> None:
    first, again = (load_dataset(DIGITS, size=8, channels=1) for _ in range(2))
    other = load_dataset(DataConfig(name="digits", val=0.1, split_seed=1), size=8, channels=1)
    assert first.digest == again.digest != other.digest
    assert torch.equal(first.test.images, other.test.images)
    assert not torch.equal(first.val.images, other.val.images)


def test_without_validation_all_is_trained_on() -> None:
    data = load_dataset(DataConfig(name="digits", val=0), size=8, channels=1)
    assert (len(data.train), len(data.val)) == (1437, 0)
    assert data.val.images.shape == (0, 1, 8, 8)


def test_validation_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(BadInput, match=r"5000 takes 5000 of 1437 training images \(data.val\)"):
        load_dataset(DataConfig(name="digits", val=5000), size=8, channels=1)
