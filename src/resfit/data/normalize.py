"""From uint8 images to what a network takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from uint8 [N, C, H, W] to float32, channels_last, (x / 255 - mean) / std per channel."""
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=device)).view(-1, 1, 1)
    shift = (torch.tensor(mean, dtype=torch.float32, device=device) / torch.tensor(std, device=device)).view(-1, 1, 1)

    def normalize(images: Tensor) -> Tensor:
        return images.to(torch.float32, memory_format=torch.channels_last).mul_(scale).sub_(shift)

    return normalize
