from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfit.data import load_dataset
from resfit.data.split import stratified_part, stratified_split, val_count
from resfit.errors import BadInput
from resfit.recipe import DataConfig


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(4, 40), min_size=2, max_size=6), part=st.floats(0, 0.6), seed=st.integers(0, 2**40))
def test_a_split_is_exact_stratified_and_a_partition(counts: list[int], part: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    n_val = int(part * len(labels))
    train, val = stratified_split(labels, n_val, seed)
    assert len(val) == n_val
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(len(labels)))
    assert torch.equal(train, train.sort().values) and torch.equal(val, val.sort().values)
    taken = labels[val].bincount(minlength=len(counts))
    for count, got in zip(counts, taken.tolist(), strict=True):
        assert abs(got - n_val * count / len(labels)) < 1


def test_the_last_ones_go_to_the_largest_remainders() -> None:
    labels = torch.tensor([0] * 5 + [1] * 7 + [2] * 8)  # a quarter of each: 1.25, 1.75, 2
    _, val = stratified_split(labels, 5, seed=3)
    assert labels[val].bincount().tolist() == [1, 2, 2]


GOLDEN = [2, 3, 8, 11, 13, 18]


def test_a_seed_means_the_same_split_for_good() -> None:
    labels = torch.arange(20) % 2
    assert stratified_split(labels, 6, seed=0)[1].tolist() == GOLDEN
    assert stratified_split(labels, 6, seed=1)[1].tolist() != GOLDEN


def test_each_class_keeps_a_training_image() -> None:
    labels = torch.tensor([0] * 9 + [1] + [2] * 2)
    train, val = stratified_split(labels, 9, seed=0)
    assert sorted(labels[train].tolist()) == [0, 1, 2]
    assert len(val) == 9
    with pytest.raises(BadInput, match=r"10 of 12 images for validation leave too few .* all 3 classes \(data.val\)"):
        stratified_split(labels, 10, seed=0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(BadInput, match=r"data\.split_seed"):
        stratified_split(torch.tensor([0, 0, 1, 1]), 2, seed=-1)


@pytest.mark.parametrize(("val", "n", "count"), [(0, 10, 0), (3, 10, 3), (3.0, 10, 3), (0.25, 10, 2), (0.1, 1437, 144)])
def test_val_is_a_count_or_a_fraction(val: float, n: int, count: int) -> None:
    assert val_count(val, n) == count


@pytest.mark.parametrize("val", [10, 5000, 0.01, 0.99])
def test_val_that_takes_all_or_none_is_refused(val: float) -> None:
    with pytest.raises(BadInput, match=r"of 10 training images \(data.val\)"):
        val_count(val, 10)


def test_a_part_is_stratified_and_a_seed_means_the_same_one() -> None:
    labels = torch.arange(100) % 4
    part = stratified_part(labels, 0.2, seed=0)
    assert labels[part].bincount().tolist() == [5, 5, 5, 5]
    assert torch.equal(part, stratified_part(labels, 0.2, seed=0))
    assert not torch.equal(part, stratified_part(labels, 0.2, seed=1))
    with pytest.raises(BadInput, match=r"0.02 of 100 images includes none of class 2 \(data.fraction\)"):
        stratified_part(labels, 0.02, seed=0)


def test_a_fraction_is_taken_of_the_training_images_alone() -> None:
    whole = load_dataset(DataConfig(name="digits", val=200), size=8, channels=1)
    part = load_dataset(DataConfig(name="digits", val=200, fraction=0.25), size=8, channels=1)
    assert (len(whole.train), len(part.train)) == (1237, 309)
    assert torch.equal(part.val.images, whole.val.images) and torch.equal(part.test.images, whole.test.images)
    rows = {bytes(image.numpy()) for image in whole.train.images}
    assert all(bytes(image.numpy()) in rows for image in part.train.images)
    assert part.digest != whole.digest
