"""Augmentations that change pixel values: brightness, contrast, blur, equalize and others.

images: uint8 [N, C, H, W], never modified; parameters: [N], one per image. Formulas and truncation follow torchvision's
v2 functionals; results differ from theirs by at most one grey level, where a floating-point sum that should be a whole
number is rounded to the other side of it. Images are treated as grey if C is not 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from resfit.augment.draw import uniform

LEVELS = 256


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale pixel values: factor 0 gives black, 1 the image itself, above 1 a brighter image."""
    return (images * _per_image(factor).float()).clamp_(0, 255).to(torch.uint8)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey level: factor 0 gives that grey, 1 the image itself, above 1 more contrast."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: factor 0 gives grey, above 1 more saturation; grey images do not change."""
    return _blend(images, _grey(images), factor) if images.shape[1] == 3 else images.clone()


def random_adjust(
    images: Tensor, generator: torch.Generator, adjust: Callable[[Tensor, Tensor], Tensor], strength: float
) -> Tensor:
    """Apply `adjust` to each image with a factor drawn uniformly from 1 ± strength."""
    return adjust(images, uniform(images, generator, 1 - strength, 1 + strength))


def _grey(images: Tensor) -> Tensor:
    """Return the ITU-R BT.601 luma in whole levels, float32 [N, 1, H, W]; other images only as float."""
    if images.shape[1] != 3:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return factor x images + (1 - factor) x other, clamped to 0..255, as uint8."""
    ratio = _per_image(factor).double()
    # Written as an offset from `images`, so that rounding cannot lose a level where both are equal.
    return (images + (other - images) * (1 - ratio).float()).clamp_(0, 255).to(torch.uint8)


def _per_image(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by a 3 x 3 kernel (centre 5, others 1): factor 0 smooths, above 1 sharpens.

    The outermost pixels do not change.
    """
    if min(images.shape[-2:]) < 3:
        return images.clone()
    smooth, values = images.float(), images.to(torch.int16)
    total = _sum_of_three(_sum_of_three(values, 2), 3) + 4 * values[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (total / 13).round_()
    return _blend(images, smooth, factor)


def _sum_of_three(values: Tensor, dim: int) -> Tensor:
    """Return sums of three neighbours along an axis, whose size shrinks by two."""
    first, second, third = (values.narrow(dim, i, values.shape[dim] - 2) for i in range(3))
    return first + second + third


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur with a Gaussian of standard deviation sigma (pixels) and kernel x kernel taps, with reflected borders.

    kernel: odd, less than twice the image's side.
    """
    radius = kernel // 2
    places = torch.arange(-radius, radius + 1, device=images.device)
    taps = torch.softmax(-((places / sigma.clamp_min(1e-3)[:, None]) ** 2) / 2, dim=1)
    padded = F.pad(images.float(), [radius] * 4, mode="reflect")
    return _along(_along(padded, taps, 2), taps, 3).round_().to(torch.uint8)


def _along(images: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Correlate with `taps` ([N, K], one filter per image) along an axis, without padding."""
    size = images.shape[dim] - taps.shape[1] + 1
    total = images.narrow(dim, 0, size) * _per_image(taps[:, 0])
    for i in range(1, taps.shape[1]):
        total.addcmul_(images.narrow(dim, i, size), _per_image(taps[:, i]))
    return total


def random_blur(images: Tensor, generator: torch.Generator, largest: float) -> Tensor:
    """Blur each image with a sigma drawn uniformly from 0 to `largest` pixels; the kernel extends to 2 x `largest`."""
    radius = min(max(1, math.ceil(2 * largest)), min(images.shape[-2:]) - 1)
    return gaussian_blur(images, uniform(images, generator, 0, largest), 2 * radius + 1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` (int [N], 0 to 8) of each value."""
    return images & (LEVELS - (1 << (8 - _per_image(bits).int()))).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values at or above the threshold."""
    inverted = images >= _per_image(threshold.float().ceil().to(torch.int16))
    return images ^ (inverted.to(torch.uint8) * 255)


def invert(images: Tensor) -> Tensor:
    """Invert all values."""
    return 255 - images


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to the full range; constant channels do not change."""
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    flat = low == high
    scale = ((high - low) * (1 / 255)).masked_fill_(flat, 1)
    return ((values - low.masked_fill_(flat, 0)) / scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Equalize each channel's histogram as Pillow does; constant channels do not change."""
    values = images.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], LEVELS).scatter_add_(2, values, torch.ones_like(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    spread = ((below + step // 2) // step.clamp_min(1)).clamp_(0, 255)
    table = torch.where(step > 0, spread, torch.arange(LEVELS, device=images.device)).to(torch.uint8)
    return table.gather(2, values).view(images.shape)
