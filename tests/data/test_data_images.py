from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resfit.data.images import Images, channel_statistics, count_duplicates, digest, image_hashes, resized


def random_images(n: int, size: int = 6, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def labelled(images: Tensor) -> Images:
    return Images(images=images, labels=torch.arange(len(images)) % 3)


def test_statistics_agree_with_floating_point_over_several_chunks() -> None:
    images = random_images(5000) // torch.tensor([1, 2, 5], dtype=torch.uint8)[:, None, None]
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_a_constant_channel_has_a_deviation_that_divides() -> None:
    images = random_images(4)
    images[:, 1] = 77
    mean, std = channel_statistics(images)
    assert mean[1] == pytest.approx(77 / 255) and std[1] == 1 / 255
    assert std[0] > 0.1


def parts_digest(parts: dict[str, Images]) -> str:
    return digest(parts, {name: image_hashes(part.images) for name, part in parts.items()})


def test_the_digest_sees_pixels_labels_shapes_and_splits() -> None:
    images = random_images(6)
    parts = {"train": labelled(images[:4]), "test": labelled(images[4:])}
    same = {"train": labelled(images[:4].clone()), "test": labelled(images[4:].clone())}
    assert parts_digest(parts) == parts_digest(same)

    pixel = images[:4].clone()
    pixel[3, 2, 5, 5] ^= 1
    label = Images(images=images[:4], labels=torch.tensor([0, 1, 2, 1]))
    changed = [
        {**parts, "train": labelled(pixel)},
        {**parts, "train": label},
        {**parts, "train": labelled(images[:4].flip(0))},
        {**parts, "train": labelled(images[:4].view(4, 3, 4, 9))},
        {"train": labelled(images[:3]), "test": labelled(images[3:])},
    ]
    digests = [parts_digest(parts), *map(parts_digest, changed)]
    assert len(set(digests)) == len(digests)


def test_duplicates_are_counted_in_the_second_split_of_each_pair() -> None:
    images = random_images(8)
    train, val, test = images[:4], images[[4, 0]], torch.cat([images[[1, 1, 4]], images[5:]])
    near = images[2].clone()
    near[0, 0, 0] ^= 1
    test = torch.cat([test, near[None]])
    hashes = {name: image_hashes(part) for name, part in (("train", train), ("val", val), ("test", test))}
    assert count_duplicates(hashes) == {"train/val": 1, "train/test": 2, "val/test": 1}


def test_an_empty_split_has_no_hashes() -> None:
    assert image_hashes(random_images(3)[:0]) == []


def test_resizing_keeps_what_has_the_size_already() -> None:
    part = labelled(random_images(2))
    assert resized(part, 6) is part


@pytest.mark.parametrize("size", [3, 13])
def test_resizing_keeps_constant_images_and_the_mean(size: int) -> None:
    images = random_images(4100, size=6)  # more than a chunk
    images[0] = 255
    images[-1] = 3
    new = resized(labelled(images), size)
    assert new.images.shape == (4100, 3, size, size) and new.images.dtype == torch.uint8
    assert (new.images[0] == 255).all() and (new.images[-1] == 3).all()
    assert new.images.double().mean() == pytest.approx(images.double().mean().item(), abs=1)


def test_shrinking_averages_instead_of_dropping_pixels() -> None:
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 255
    part = labelled(board.to(torch.uint8).expand(1, 3, 8, 8).contiguous())
    inner = resized(part, 2).images.double()
    assert inner.sub(127.5).abs().max() < 20
