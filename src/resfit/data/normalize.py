"""From uint8 images to what a network takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def normalizer(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from pixels, 0 to 255 in uint8 or float [N, C, H, W], to (x / 255 - mean) / std, by channels.

    It gives float32, channels_last, and leaves the pixels as they are.
    """
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=device)).view(-1, 1, 1)
    shift = (torch.tensor(mean, dtype=torch.float32, device=device) / torch.tensor(std, device=device)).view(-1, 1, 1)

    def normalize(images: Tensor) -> Tensor:
        # Plane by plane, and laid out at the end: three channels side by side are too few for a vector.
        return (images.float() * scale).sub_(shift).contiguous(memory_format=torch.channels_last)

    return normalize
