"""Normalize uint8 images for a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that maps images [N, C, H, W] to (pixel / 255 - mean) / std, per channel.

    It takes pixels from 0 to 255, uint8 or float, does not modify them, and returns float32, channels_last.
    """
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=device)).view(-1, 1, 1)
    shift = (torch.tensor(mean, dtype=torch.float32, device=device) / torch.tensor(std, device=device)).view(-1, 1, 1)

    def normalize(images: Tensor) -> Tensor:
        # Compute in NCHW and convert at the end: three adjacent channels are too few to vectorize over.
        return (images.float() * scale).sub_(shift).contiguous(memory_format=torch.channels_last)

    return normalize
