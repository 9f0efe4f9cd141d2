"""Draw random per-image parameters on the generator's device and copy them to the images' device without a sync."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """Return one number from [low, high) per image: float32 [N]."""
    drawn = torch.rand(len(images), generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(images.device, non_blocking=True)


def integers(images: Tensor, generator: torch.Generator, low: int, high: int) -> Tensor:
    """Return one integer from low to high - 1 per image: int64 [N]."""
    drawn = torch.randint(low, high, (len(images),), generator=generator, device=generator.device)
    return drawn.to(images.device, non_blocking=True)
