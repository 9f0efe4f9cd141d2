"""Operations that move, mirror or cover pixels.

images: uint8 [N, C, H, W], never changed; parameters: [N], one an image.

Nearest-neighbour sampling with a black surround, the default of torchvision's v2 functionals on tensors. The same
parameters give the same pixels, but for sources half-way between two of them where a side isn't a power of two.
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
    """The H x W window at (dy, dx) of each image padded by `padding` pixels; dy, dx: int64 [N] from 0 to 2 x padding.

    Raises BadInput where a reflection would be wider than the image.
    """
    n, c, h, w = images.shape
    padded = _reflected(images, padding) if mode == "reflect" else _blackened(images, padding)
    high, wide = h + 2 * padding, w + 2 * padding
    planes = torch.arange(n * c, device=images.device).view(n, c, 1) * (high * wide)
    rows = torch.arange(h, device=images.device) * wide
    starts = planes + rows + (dy * wide + dx).view(n, 1, 1)
    # A row of a window is W adjacent pixels of memory: copying whole rows is faster than gathering pixels.
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
    """Pad, then crop back to size at an offset that is uniform for each image."""
    dy = integers(images, generator, 0, 2 * padding + 1)
    dx = integers(images, generator, 0, 2 * padding + 1)
    return shift_crop(images, dy, dx, padding, mode)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left to right where mask (bool [N]) is true."""
    images = images.contiguous()
    bits = (mask.to(torch.uint8) * 255).view(-1, 1, 1, 1)
    # a ^ ((a ^ b) & bits) chooses as torch.where does, which is three times slower on broadcast bytes.
    return images.flip(-1).bitwise_xor_(images).bitwise_and_(bits).bitwise_xor_(images)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image with a chance of one half."""
    return flip(images, integers(images, generator, 0, 2).bool())


def alternating_flip(images: Tensor, index: Tensor, epoch: int | Tensor, seed: int) -> Tensor:
    """Mirror each image every other epoch, beginning with a fair coin (Jordan 2024, airbench).

    index: int64 [N], places in the training set. epoch: one for all, or each image's own, int64 [N]. The coin depends
    on the seed and the image's own place alone.
    """
    coin = _scramble(_scramble(index) ^ (seed & _WORD) ^ (seed >> 32 & _WORD)) & 1
    return flip(images, ((coin + epoch) & 1).bool().to(images.device))


_WORD = 0xFFFF_FFFF


def _scramble(value: Tensor) -> Tensor:
    """A 32-bit hash of int64 values in which every bit depends on every bit ("lowbias32", Wellons 2018)."""
    value = value & _WORD
    value = ((value ^ (value >> 16)) * 0x7FEB_352D) & _WORD
    value = ((value ^ (value >> 15)) * 0x846C_A68B) & _WORD
    return value ^ (value >> 16)


def cutout(images: Tensor, cy: Tensor, cx: Tensor, side: int, fill: Tensor | None = None) -> Tensor:
    """Cover a square about the pixel (cy, cx) with `fill` (uint8 [C], black where None): DeVries & Taylor 2017.

    Rows cy - side // 2 to cy - side // 2 + side - 1, columns likewise; what lies outside the image is cut off.
    """
    n, c, h, w = images.shape
    rows, columns = _span(cy, side, h), _span(cx, side, w)
    covered = (rows[:, :, None] * w + columns[:, None, :]).view(n, 1, -1).expand(n, c, -1)
    colour = images.new_zeros(c) if fill is None else fill.to(images.device)
    return images.flatten(2).scatter(2, covered, colour[:, None].expand(covered.shape)).view(n, c, h, w)


def _span(centre: Tensor, side: int, size: int) -> Tensor:
    """The places that a square covers along an axis of `size` pixels: int64 [N, side]."""
    side = min(side, 2 * size)
    offsets = torch.arange(side, device=centre.device) - side // 2
    # The centre is in the image, so the edge that an outer place is moved to is covered anyway.
    return (centre[:, None] + offsets).clamp_(0, size - 1)


def random_cutout(images: Tensor, generator: torch.Generator, side: int, fill: Tensor | None = None) -> Tensor:
    """Cover a square whose centre is uniform over the pixels of each image."""
    h, w = images.shape[-2:]
    return cutout(images, integers(images, generator, 0, h), integers(images, generator, 0, w), side, fill)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn about the centre, counter-clockwise."""
    cos, sin = torch.cos(degrees.double().deg2rad()), torch.sin(degrees.double().deg2rad())
    zero = torch.zeros_like(cos)
    return _sample(images, (cos, -sin, zero), (sin, cos, zero))


def translate(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Move down by dy and right by dx whole pixels."""
    zero = torch.zeros_like(dy, dtype=torch.float64)
    return _sample(images, (zero + 1, zero, -dx.double()), (zero, zero + 1, -dy.double()))


def shear_x(images: Tensor, slope: Tensor) -> Tensor:
    """Slide each row to the left by slope x its distance from the upper edge."""
    slope, zero = slope.double(), torch.zeros_like(slope, dtype=torch.float64)
    return _sample(images, (zero + 1, slope, slope * images.shape[-2] / 2), (zero, zero + 1, zero))


def shear_y(images: Tensor, slope: Tensor) -> Tensor:
    """Slide each column up by slope x its distance from the left edge."""
    slope, zero = slope.double(), torch.zeros_like(slope, dtype=torch.float64)
    return _sample(images, (zero + 1, zero, zero), (slope, zero + 1, slope * images.shape[-1] / 2))


def _sample(images: Tensor, to_x: tuple[Tensor, Tensor, Tensor], to_y: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The pixel nearest to the source (x, y) of each output pixel, black outside.

    to_x, to_y: coefficients float64 [N] of x, y and 1, in pixels from the centre: x_source = a x + b y + c.
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
    """The place along an axis of `size` pixels that is nearest to each source: float32 [N, H, W].

    In grid_sample's unit, half a side, and in its order of rounding, so that sources half-way between two pixels go
    where torchvision sends them. Not by a matrix product: where those run in TF32 they would misplace pixels.
    """
    a, b, c = ((value.float() / (size / 2)).view(-1, 1, 1) for value in coefficients)
    return (a * x + b * y + c).add_(1).mul_(size / 2).sub_(0.5).round_()


def random_rotate(images: Tensor, generator: torch.Generator, degrees: float) -> Tensor:
    """Turn each image by an angle that is uniform within ± degrees."""
    return rotate(images, uniform(images, generator, -degrees, degrees))


def random_translate(images: Tensor, generator: torch.Generator, fraction: float) -> Tensor:
    """Move each image by whole pixels, up to ± fraction of its height and of its width."""
    h, w = images.shape[-2:]
    dy = uniform(images, generator, -fraction * h, fraction * h).round()
    dx = uniform(images, generator, -fraction * w, fraction * w).round()
    return translate(images, dy, dx)
