"""Augmentations that move, mirror or cover pixels: crop, flip, cutout, rotate, translate, shear.

images: uint8 [N, C, H, W], never modified; parameters: [N], one per image. Nearest-neighbour sampling with black
outside the image, the default of torchvision's v2 functionals on tensors. The same parameters give the same pixels as
torchvision, except for sources half-way between two pixels if a side is not a power of two.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from resfit.augment.draw import integers, uniform
from resfit.errors import BadInput

CropMode = Literal["zero", "reflect"]


def shift_crop(images: Tensor, dy: Tensor, dx: Tensor, padding: int, mode: CropMode) -> Tensor:
    """Crop an H x W window at (dy, dx) from each image padded by `padding` pixels.

    dy, dx: int64 [N], from 0 to 2 x padding. Raises BadInput if reflection padding is not smaller than the image.
    """
    n, c, h, w = images.shape
    padded = _reflected(images, padding) if mode == "reflect" else _blackened(images, padding)
    high, wide = h + 2 * padding, w + 2 * padding
    planes = torch.arange(n * c, device=images.device).view(n, c, 1) * (high * wide)
    rows = torch.arange(h, device=images.device) * wide
    starts = planes + rows + (dy * wide + dx).view(n, 1, 1)
    # Each row of a window is W contiguous pixels: copying whole rows is faster than gathering pixels.
    return padded.flatten().unfold(0, w, 1).index_select(0, starts.flatten()).view(n, c, h, w)


def _reflected(images: Tensor, padding: int) -> Tensor:
    h, w = images.shape[-2:]
    if padding >= min(h, w):
        raise BadInput(f"a reflection of {padding} pixels on {h} x {w} images (augment.crop): give less than the side")
    padded = _blackened(images, padding)
    for lines, end in ((padded, w + padding), (padded.mT, h + padding)):
        lines[..., :padding] = lines[..., padding + 1 : 2 * padding + 1].flip(-1)
        lines[..., end:] = lines[..., end - padding - 1 : end - 1].flip(-1)
    return padded


def _blackened(images: Tensor, padding: int) -> Tensor:
    return F.pad(images.contiguous(), [padding] * 4)


def random_crop(images: Tensor, generator: torch.Generator, padding: int, mode: CropMode) -> Tensor:
    """Pad, then crop to the original size at a uniformly random offset per image."""
    dy = integers(images, generator, 0, 2 * padding + 1)
    dx = integers(images, generator, 0, 2 * padding + 1)
    return shift_crop(images, dy, dx, padding, mode)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left to right the images for which mask (bool [N]) is true."""
    images = images.contiguous()
    bits = (mask.to(torch.uint8) * 255).view(-1, 1, 1, 1)
    # a ^ ((a ^ b) & bits) selects like torch.where, which is three times slower on broadcast bytes.
    return images.flip(-1).bitwise_xor_(images).bitwise_and_(bits).bitwise_xor_(images)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image with probability one half."""
    return flip(images, integers(images, generator, 0, 2).bool())


def alternating_flip(images: Tensor, coins: Tensor, epoch: int | Tensor) -> Tensor:
    """Mirror each image every other epoch; its coin says whether it starts mirrored (Jordan 2024, airbench).

    coins: bool [N], see `flip_coins`. epoch: one number for all images, or one per image, int64 [N].
    """
    return flip(images, ((coins + epoch) & 1).bool().to(images.device))


def flip_coins(index: Tensor, seed: int) -> Tensor:
    """Return a fair coin, bool [N], for each position in the training set, int64 [N]; it depends on these two alone."""
    return (_scramble(_scramble(index) ^ (seed & _WORD) ^ (seed >> 32 & _WORD)) & 1).bool()


_WORD = 0xFFFF_FFFF


def _scramble(value: Tensor) -> Tensor:
    """Return a 32-bit hash of int64 values; every output bit depends on every input bit ("lowbias32", Wellons 2018)."""
    value = value & _WORD
    value = ((value ^ (value >> 16)) * 0x7FEB_352D) & _WORD
    value = ((value ^ (value >> 15)) * 0x846C_A68B) & _WORD
    return value ^ (value >> 16)


def cutout(images: Tensor, cy: Tensor, cx: Tensor, side: int, fill: Tensor | None = None) -> Tensor:
    """Cover a square centred on the pixel (cy, cx) with `fill` (uint8 [C], black if None): DeVries & Taylor 2017.

    It covers rows cy - side // 2 to cy - side // 2 + side - 1, and the same range of columns, clipped to the image.
    """
    n, c, h, w = images.shape
    rows, columns = _span(cy, side, h), _span(cx, side, w)
    covered = (rows[:, :, None] * w + columns[:, None, :]).view(n, 1, -1).expand(n, c, -1)
    colour = images.new_zeros(c) if fill is None else fill.to(images.device)
    return images.flatten(2).scatter(2, covered, colour[:, None].expand(covered.shape)).view(n, c, h, w)


def _span(centre: Tensor, side: int, size: int) -> Tensor:
    """Return the positions that a square covers along an axis of `size` pixels: int64 [N, side]."""
    side = min(side, 2 * size)
    offsets = torch.arange(side, device=centre.device) - side // 2
    # The centre is inside the image, so the edge pixel to which a position is clamped is covered anyway.
    return (centre[:, None] + offsets).clamp_(0, size - 1)


def random_cutout(images: Tensor, generator: torch.Generator, side: int, fill: Tensor | None = None) -> Tensor:
    """Cover a square whose centre is uniform over the pixels, in each image."""
    h, w = images.shape[-2:]
    return cutout(images, integers(images, generator, 0, h), integers(images, generator, 0, w), side, fill)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre."""
    cos, sin = torch.cos(degrees.double().deg2rad()), torch.sin(degrees.double().deg2rad())
    zero = torch.zeros_like(cos)
    return _sample(images, (cos, -sin, zero), (sin, cos, zero))


def translate(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Move down by dy and right by dx, in whole pixels."""
    zero = torch.zeros_like(dy, dtype=torch.float64)
    return _sample(images, (zero + 1, zero, -dx.double()), (zero, zero + 1, -dy.double()))


def shear_x(images: Tensor, slope: Tensor) -> Tensor:
    """Shift each row to the left by slope x its distance from the top edge."""
    slope, zero = slope.double(), torch.zeros_like(slope, dtype=torch.float64)
    return _sample(images, (zero + 1, slope, slope * images.shape[-2] / 2), (zero, zero + 1, zero))


def shear_y(images: Tensor, slope: Tensor) -> Tensor:
    """Shift each column up by slope x its distance from the left edge."""
    slope, zero = slope.double(), torch.zeros_like(slope, dtype=torch.float64)
    return _sample(images, (zero + 1, zero, zero), (slope, zero + 1, slope * images.shape[-1] / 2))


def _sample(images: Tensor, to_x: tuple[Tensor, Tensor, Tensor], to_y: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Sample, for each output pixel, the pixel nearest to its source (x, y); black outside the image.

    to_x, to_y: float64 [N] coefficients of x, y and 1, in pixels from the centre: x_source = a x + b y + c.
    """
    n, c, h, w = images.shape
    x = torch.linspace((1 - w) / 2, (w - 1) / 2, w, device=images.device)
    y = torch.linspace((1 - h) / 2, (h - 1) / 2, h, device=images.device)[:, None]
    columns, rows = _nearest(to_x, x, y, w), _nearest(to_y, x, y, h)
    inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    source = columns.add_(rows, alpha=w).clamp_(0, h * w - 1).long()
    pixels = images.flatten(2).gather(2, source.view(n, 1, -1).expand(n, c, -1))
    return pixels.mul_(inside.view(n, 1, -1)).view(n, c, h, w)


def _nearest(coefficients: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor, size: int) -> Tensor:
    """Return the position along an axis of `size` pixels nearest to each source: float32 [N, H, W].

    Computed in grid_sample's unit (half a side) and order of rounding, so that sources half-way between two pixels are
    rounded as torchvision rounds them. A matrix product is avoided: in TF32 it would misplace pixels.
    """
    a, b, c = ((value.float() / (size / 2)).view(-1, 1, 1) for value in coefficients)
    return (a * x + b * y + c).add_(1).mul_(size / 2).sub_(0.5).round_()


def random_rotate(images: Tensor, generator: torch.Generator, degrees: float) -> Tensor:
    """Rotate each image by an angle drawn uniformly from ± degrees."""
    return rotate(images, uniform(images, generator, -degrees, degrees))


def random_translate(images: Tensor, generator: torch.Generator, fraction: float) -> Tensor:
    """Translate each image by whole pixels, up to ± fraction of its height and width."""
    h, w = images.shape[-2:]
    dy = uniform(images, generator, -fraction * h, fraction * h).round()
    dx = uniform(images, generator, -fraction * w, fraction * w).round()
    return translate(images, dy, dx)
