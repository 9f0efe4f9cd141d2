"""Operations on the values of pixels. images: uint8 [N, C, H, W], never changed; parameters: [N], one an image.

Formulas and truncation are torchvision's v2 functionals'; results differ from theirs by one grey level at most, where a
sum of floats that is a whole number but for rounding falls on its other side. Where C isn't 3 the images count as grey.
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
    """Scale towards black (0) or away from it (above 1)."""
    return (images * _per_image(factor).float()).clamp_(0, 255).to(torch.uint8)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey (0) or away from it (above 1)."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image (0) or away from it (above 1); grey images stay as they are."""
    return _blend(images, _grey(images), factor) if images.shape[1] == 3 else images.clone()


def random_adjust(
    images: Tensor, generator: torch.Generator, adjust: Callable[[Tensor, Tensor], Tensor], strength: float
) -> Tensor:
    """Apply `adjust` with a factor that is uniform in 1 ± strength for each image."""
    return adjust(images, uniform(images, generator, 1 - strength, 1 + strength))


def _grey(images: Tensor) -> Tensor:
    """Luma as ITU-R BT.601 weighs it, in whole levels: float32 [N, 1, H, W] for colour; other images as they are."""
    if images.shape[1] != 3:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor x images + (1 - factor) x other, cut to bytes."""
    ratio = _per_image(factor).double()
    # As a step from `images`, so that where both are equal rounding cannot lose a level.
    return (images + (other - images) * (1 - ratio).float()).clamp_(0, 255).to(torch.uint8)


def _per_image(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a 3 x 3 smoothing of weights 1 about a 5 (0) or away from it (above 1); the outermost pixels stay."""
    if min(images.shape[-2:]) < 3:
        return images.clone()
    smooth, values = images.float(), images.to(torch.int16)
    total = _sum_of_three(_sum_of_three(values, 2), 3) + 4 * values[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (total / 13).round_()
    return _blend(images, smooth, factor)


def _sum_of_three(values: Tensor, dim: int) -> Tensor:
    """Sums of three neighbours along an axis, which gets two places shorter."""
    first, second, third = (values.narrow(dim, i, values.shape[dim] - 2) for i in range(3))
    return first + second + third


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur with a Gaussian of sigma pixels over kernel x kernel taps (odd, below twice the side), edges reflected."""
    radius = kernel // 2
    places = torch.arange(-radius, radius + 1, device=images.device)
    taps = torch.softmax(-((places / sigma.clamp_min(1e-3)[:, None]) ** 2) / 2, dim=1)
    padded = F.pad(images.float(), [radius] * 4, mode="reflect")
    return _along(_along(padded, taps, 2), taps, 3).round_().to(torch.uint8)


def _along(images: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Correlate with taps ([N, K], one filter an image) along an axis, without padding."""
    size = images.shape[dim] - taps.shape[1] + 1
    total = images.narrow(dim, 0, size) * _per_image(taps[:, 0])
    for i in range(1, taps.shape[1]):
        total.addcmul_(images.narrow(dim, i, size), _per_image(taps[:, i]))
    return total


def random_blur(images: Tensor, generator: torch.Generator, largest: float) -> Tensor:
    """Blur each image by a sigma that is uniform from 0 to `largest` pixels, over taps that reach two sigma."""
    radius = min(max(1, math.ceil(2 * largest)), min(images.shape[-2:]) - 1)
    return gaussian_blur(images, uniform(images, generator, 0, largest), 2 * radius + 1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` (int [N], 0 to 8) of each value."""
    return images & (LEVELS - (1 << (8 - _per_image(bits).int()))).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values that are at or above the threshold."""
    inverted = images >= _per_image(threshold.float().ceil().to(torch.int16))
    return images ^ (inverted.to(torch.uint8) * 255)


def invert(images: Tensor) -> Tensor:
    """Turn light into dark."""
    return 255 - images


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to the full range; a channel of one value stays."""
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    flat = low == high
    scale = ((high - low) * (1 / 255)).masked_fill_(flat, 1)
    return ((values - low.masked_fill_(flat, 0)) / scale).clamp_(0, 255).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Spread each channel's values evenly by rank, as Pillow computes it; a channel of one value stays."""
    values = images.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], LEVELS).scatter_add_(2, values, torch.ones_like(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    spread = ((below + step // 2) // step.clamp_min(1)).clamp_(0, 255)
    table = torch.where(step > 0, spread, torch.arange(LEVELS, device=images.device)).to(torch.uint8)
    return table.gather(2, values).view(images.shape)
