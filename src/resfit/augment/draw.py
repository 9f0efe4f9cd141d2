"""Per-image parameters, drawn on the generator's device and handed over on the images' without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """One number from [low, high) for each image: float32 [N]."""
    drawn = torch.rand(len(images), generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(images.device, non_blocking=True)


def integers(images: Tensor, generator: torch.Generator, low: int, high: int) -> Tensor:
    """One whole number from low to high - 1 for each image: int64 [N]."""
    drawn = torch.randint(low, high, (len(images),), generator=generator, device=generator.device)
    return drawn.to(images.device, non_blocking=True)
