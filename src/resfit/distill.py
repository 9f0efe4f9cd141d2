"""Distillation: a student learns from the probabilities of trained teachers beside the labels (Hinton et al. 2015).

Shapes: N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Renormalized(nn.Module):
    """A trained network behind another normalization than its own: takes what was normalized by `given`.

    given, own: mean and deviation of each channel on the 0 to 1 scale.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        given: tuple[Sequence[float], Sequence[float]],
        own: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        super().__init__()
        self.net = net
        (mean, std), (own_mean, own_std) = (map(torch.tensor, pair) for pair in (given, own))
        self.register_buffer("scale", (std / own_std).view(-1, 1, 1))
        self.register_buffer("shift", ((mean - own_mean) / own_std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W]."""
        logits: Tensor = self.net(images * self.scale + self.shift)
        return logits


@torch.no_grad()
def soft_targets(teachers: Sequence[nn.Module], images: Tensor, temperature: float) -> Tensor:
    """The teachers' mean probabilities of normalized images [N, C, H, W] at a temperature: float32 [N, K]."""
    each = [(teacher(images).float() / temperature).softmax(1) for teacher in teachers]
    return torch.stack(each).mean(0)


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T² KL(targets || softmax(logits / T)), the mean over logits [N, K]: float32 scalar, in nats.

    T² keeps the gradient's size at any temperature (Hinton et al. 2015).
    """
    predicted = F.log_softmax(logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(predicted, targets, reduction="batchmean")
