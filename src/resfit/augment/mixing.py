"""Mixing of images and their targets, within a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resfit.recipe import AugmentConfig


def mix(images: Tensor, targets: Tensor, config: AugmentConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix the batch with permutations of itself by RICAP, mixup or CutMix; of the last two one, at an equal chance.

    images: float [N, C, H, W]; targets: float [N, K], rows that sum to 1. Unchanged where nothing is on.
    One draw of shares for the batch, as in the originals (Zhang et al. 2018; Yun et al. 2019; Takahashi et al. 2018).
    """
    if not config.mixes:
        return images, targets
    if config.ricap:
        return ricap(images, targets, config.ricap, generator)
    partner = torch.randperm(len(images), generator=generator, device=generator.device)
    partner = partner.to(images.device, non_blocking=True)
    weight, share = _drawn_weight(images, config, generator)
    mixed = torch.lerp(images[partner], images, weight.to(images.dtype))
    return mixed, torch.lerp(targets[partner], targets, share.to(targets.dtype))


def _drawn_weight(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How much of each pixel, [H, W], and of the targets, scalar, is the image's own: float64 on the images' device."""
    height, width = images.shape[-2:]
    own = [
        method(height, width, alpha, generator)
        for method, alpha in ((mixup_weight, config.mixup), (cutmix_weight, config.cutmix))
        if alpha
    ]
    # Choosing among results, not methods, keeps the coin on its device.
    coin = torch.randint(2, (), generator=generator, device=generator.device).bool()
    weight, share = (torch.where(coin, first, last) for first, last in zip(own[0], own[-1], strict=True))
    return weight.to(images.device, non_blocking=True), share.to(images.device, non_blocking=True)


def mixup_weight(height: int, width: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same share for every pixel, drawn from Beta(alpha, alpha): Zhang et al. 2018."""
    share = draw_beta(alpha, generator)
    return share.expand(height, width), share


def cutmix_weight(height: int, width: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """1 outside a box about a uniform centre and 0 inside; the share is the exact area outside: Yun et al. 2019."""
    cy, cx = (torch.randint(n, (), generator=generator, device=generator.device) for n in (height, width))
    weight = outside_box(height, width, cy, cx, torch.sqrt(1 - draw_beta(alpha, generator)))
    return weight, weight.mean()


def outside_box(height: int, width: int, cy: Tensor, cx: Tensor, cut: Tensor) -> Tensor:
    """0 in the box about (cy, cx) that takes the fraction `cut` of each side, as far as it is in the image, else 1."""
    inside = _within(height, cy, cut)[:, None] & _within(width, cx, cut)
    return 1 - inside.double()


def _within(size: int, centre: Tensor, cut: Tensor) -> Tensor:
    """Which of `size` places the box covers, half of its side before the centre and half from it on: bool [size]."""
    half = (size * cut).floor() // 2
    place = torch.arange(size, device=centre.device)
    return (centre - half <= place) & (place < centre + half)


def ricap(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches of four images about a point, whose place along each side is Beta(alpha, alpha): Takahashi et al. 2018.

    Each patch has a permutation of its own, and is cut from anywhere in its image. Targets are weighted by the patches'
    exact areas.
    """
    n, c, h, w = images.shape
    partners = torch.stack([torch.randperm(n, generator=generator, device=generator.device) for _ in range(4)])
    patch, source, area = patch_map(h, w, alpha, generator)
    rows = (partners[patch.flatten()].T * (h * w) + source.flatten()).flatten().to(images.device, non_blocking=True)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, c).index_select(0, rows)
    partners, area = (drawn.to(targets.device, non_blocking=True) for drawn in (partners, area))
    weighted = targets[partners] * area.to(targets.dtype).view(4, 1, 1)
    return pixels.view(n, h, w, c).permute(0, 3, 1, 2), weighted.sum(0)


def patch_map(height: int, width: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Which of four patches each pixel lies in, and which pixel of that patch's image it shows: int64 [H, W].

    The third are the patches' shares of the area: float64 [4]. The patches in order: upper left, upper right, lower
    left, lower right.
    """
    patches = torch.arange(4, device=generator.device)
    lower, from_y, tall = _cuts(height, patches // 2, alpha, generator)
    right, from_x, wide = _cuts(width, patches % 2, alpha, generator)
    patch = 2 * lower[:, None] + right
    y = torch.arange(height, device=patch.device)[:, None] + from_y[patch]
    x = torch.arange(width, device=patch.device) + from_x[patch]
    return patch, y * width + x, tall * wide / (height * width)


def _cuts(size: int, half: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A point along an axis, and the patches that lie before it (half 0) or past it (half 1), int64 [4].

    Which places lie past the point, int64 [size]; from how far each patch is taken to its place, int64 [4]; and how
    long it is, float64 [4].
    """
    point = (size * draw_beta(alpha, generator)).round()
    past = (torch.arange(size, device=half.device) >= point).long()
    length = torch.stack((point, size - point))[half]
    cut = torch.rand(4, generator=generator, device=half.device, dtype=torch.float64) * (size - length + 1)
    return past, (cut.floor() - half * point).long(), length


def draw_beta(alpha: float, generator: torch.Generator) -> Tensor:
    """One number from Beta(alpha, alpha): float64 scalar on the generator's device.

    torch.distributions takes no generator, hence from two gammas; in logarithms, as they underflow at small alpha.
    """
    first, second = _draw_log_gamma(alpha, 2, generator)
    return torch.sigmoid(first - second)


def _draw_log_gamma(shape: float, count: int, generator: torch.Generator, tries: int = 32) -> Tensor:
    """Logarithms of `count` numbers from Gamma(shape): float64 [count] (Marsaglia & Tsang 2000).

    Draws of shape + 1 brought down by a power of a uniform. Each try passes with a chance of at least 0.95: all are
    made at once, so that nothing is read back to see whether another one is needed.
    """
    d = shape + 1 - 1 / 3
    normal = torch.randn(count, tries, generator=generator, device=generator.device, dtype=torch.float64)
    cube: Tensor = (1 + normal / (9 * d) ** 0.5) ** 3
    log_cube = cube.clamp_min(1e-300).log()
    bound = normal**2 / 2 + d * (1 - cube + log_cube)
    uniform = torch.rand(count, tries + 1, generator=generator, device=generator.device, dtype=torch.float64)
    log_uniform = uniform.clamp_min(1e-300).log()
    passes = (cube > 0) & (log_uniform[:, 1:] < bound)
    first = passes.int().argmax(1, keepdim=True)
    return math.log(d) + log_cube.gather(1, first).squeeze(1) + log_uniform[:, 0] / shape
