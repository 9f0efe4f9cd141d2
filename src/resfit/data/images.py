"""Labelled uint8 images in memory: resizing, channel statistics, hashes and duplicates, without a full float copy.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 4096  # images processed at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Labelled images in memory: images uint8 [N, C, H, W], contiguous; labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Images:
        """Return a copy of the images at `index`, int64."""
        return Images(images=self.images.index_select(0, index), labels=self.labels.index_select(0, index))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded data set before splitting; `val` is None if validation images are still to be taken from `train`.

    `test_drawn`: the test images were drawn from all images, because the data set has no test split of its own.
    `test_digest` identifies the test files of data sets that have no name of their own.
    """

    classes: tuple[str, ...]
    train: Images
    test: Images
    val: Images | None = None
    notes: tuple[str, ...] = ()
    test_drawn: bool = False
    test_digest: str = ""


def resized(part: Images, size: int) -> Images:
    """Return the images resized to `size` x `size` pixels: bilinear, with antialiasing when shrinking."""
    if part.images.shape[-2:] == (size, size):
        return part
    images = torch.empty(*part.images.shape[:2], size, size, dtype=torch.uint8)
    for old, new in zip(torch.split(part.images, _CHUNK), torch.split(images, _CHUNK), strict=True):
        pixels = F.interpolate(old.float(), size=(size, size), mode="bilinear", antialias=True)
        new.copy_(pixels.round_().clamp_(0, 255))
    return Images(images=images, labels=part.labels)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and population standard deviation, of uint8 [N, C, H, W], on the 0..1 scale.

    The standard deviation of a constant channel is given as 1/255, so that normalization does not divide by zero.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for chunk in torch.split(images, _CHUNK):
        for channel, total in enumerate(counts):
            total += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    weights = counts / counts.sum(1, keepdim=True)
    mean = weights @ levels
    std = (weights * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(value if value > 1e-6 else 1 / 255 for value in std.tolist())


def image_hashes(images: Tensor) -> list[bytes]:
    """Return a 16-byte hash of each image's bytes."""
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in images.flatten(1).numpy()]


def digest(parts: Mapping[str, Images], hashes: Mapping[str, Sequence[bytes]]) -> str:
    """Return the SHA-256 (hex) over shapes, labels and image hashes of all splits, in order."""
    total = hashlib.sha256()
    for name, part in parts.items():
        total.update(f"{name} {tuple(part.images.shape)} ".encode())
        total.update(part.labels.numpy().astype("<i8").tobytes())
        total.update(b"".join(hashes[name]))
    return total.hexdigest()


def count_duplicates(hashes: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
    """Count for each pair of splits "first/second" the images of the second that occur, byte for byte, in the first."""
    names = list(hashes)
    known = {name: set(hashes[name]) for name in names}
    return {
        f"{first}/{second}": sum(item in known[first] for item in hashes[second])
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }
