"""Mixup, CutMix and RICAP: mix images and their targets within a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resfit.recipe import AugmentConfig


def mix(images: Tensor, targets: Tensor, config: AugmentConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix the batch with permutations of itself: RICAP, else mixup or CutMix.

    If both mixup and CutMix are enabled, one is chosen with equal probability. images: float [N, C, H, W]; targets:
    float [N, K], rows sum to 1. Returned unchanged if nothing is enabled. Mixing weights are drawn once per batch, as
    in the papers (Zhang et al. 2018; Yun et al. 2019; Takahashi et al. 2018).
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
    """Draw an image's own weight, per pixel [H, W] and for its target (scalar): float64 on the images' device."""
    height, width = images.shape[-2:]
    own = [
        method(height, width, alpha, generator)
        for method, alpha in ((mixup_weight, config.mixup), (cutmix_weight, config.cutmix))
        if alpha
    ]
    # Compute both and choose between the results, so that the coin need not be read back from its device.
    coin = torch.randint(2, (), generator=generator, device=generator.device).bool()
    weight, share = (torch.where(coin, first, last) for first, last in zip(own[0], own[-1], strict=True))
    return weight.to(images.device, non_blocking=True), share.to(images.device, non_blocking=True)


def mixup_weight(height: int, width: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return one weight for all pixels, drawn from Beta(alpha, alpha), and that weight: Zhang et al. 2018."""
    share = draw_beta(alpha, generator)
    return share.expand(height, width), share


def cutmix_weight(height: int, width: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return 0 inside a random box and 1 outside, and the exact fraction of the area outside: Yun et al. 2019.

    The centre of the box is uniform over the pixels.
    """
    cy, cx = (torch.randint(n, (), generator=generator, device=generator.device) for n in (height, width))
    weight = outside_box(height, width, cy, cx, torch.sqrt(1 - draw_beta(alpha, generator)))
    return weight, weight.mean()


def outside_box(height: int, width: int, cy: Tensor, cx: Tensor, cut: Tensor) -> Tensor:
    """Return 0 inside the box centred on (cy, cx) and 1 elsewhere; `cut` is the box's fraction of each side."""
    inside = _within(height, cy, cut)[:, None] & _within(width, cx, cut)
    return 1 - inside.double()


def _within(size: int, centre: Tensor, cut: Tensor) -> Tensor:
    """Return which positions of an axis the box covers, half its side to each side of the centre: bool [size]."""
    half = (size * cut).floor() // 2
    place = torch.arange(size, device=centre.device)
    return (centre - half <= place) & (place < centre + half)


def ricap(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Assemble each image from patches of four images around a random point: Takahashi et al. 2018.

    The point's position along each side is drawn from Beta(alpha, alpha). Each patch has its own permutation of the
    batch and is cut from a random position in its image. Targets are weighted by the patches' exact areas.
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
    """Return for each pixel its patch (0 to 3) and the source pixel in that patch's image, both int64 [H, W].

    Also return the patches' fractions of the area, float64 [4]. Order of the patches: upper left, upper right, lower
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
    """Cut an axis at a random point and choose where each of four patches is taken from.

    half: int64 [4], 0 for patches before the point, 1 for patches after it. Returns which positions are after the point
    (int64 [size]), the offset from each patch's position to its source (int64 [4]) and the patches' lengths (float64
    [4]).
    """
    point = (size * draw_beta(alpha, generator)).round()
    past = (torch.arange(size, device=half.device) >= point).long()
    length = torch.stack((point, size - point))[half]
    cut = torch.rand(4, generator=generator, device=half.device, dtype=torch.float64) * (size - length + 1)
    return past, (cut.floor() - half * point).long(), length


def draw_beta(alpha: float, generator: torch.Generator) -> Tensor:
    """Draw one number from Beta(alpha, alpha): float64 scalar on the generator's device.

    torch.distributions takes no generator, so it is computed from two gamma variates, as logarithms because these
    underflow for small alpha.
    """
    first, second = _draw_log_gamma(alpha, 2, generator)
    return torch.sigmoid(first - second)


def _draw_log_gamma(shape: float, count: int, generator: torch.Generator, tries: int = 32) -> Tensor:
    """Return logarithms of `count` numbers from Gamma(shape): float64 [count] (Marsaglia & Tsang 2000).

    Draws from Gamma(shape + 1), multiplied by a power of a uniform variate. Each try is accepted with probability at
    least 0.95; all tries are made at once, so that the host need not read back whether another is needed.
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
