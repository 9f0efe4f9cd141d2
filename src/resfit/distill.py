"""Knowledge distillation: train on the probabilities of trained teachers besides the labels (Hinton et al. 2015).

Shapes: N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Renormalized(nn.Module):
    """Wrap a trained network so that it accepts images normalized with other statistics than its own.

    given: mean and standard deviation of each channel, on the 0 to 1 scale, that the images are normalized with.
    own: those that the network was trained with.
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
        """Return logits [N, K] of images [N, C, H, W]."""
        logits: Tensor = self.net(images * self.scale + self.shift)
        return logits


@torch.no_grad()
def soft_targets(teachers: Sequence[nn.Module], images: Tensor, temperature: float) -> Tensor:
    """Return the teachers' mean probabilities at a temperature, float32 [N, K], for normalized images [N, C, H, W]."""
    each = [(teacher(images).float() / temperature).softmax(1) for teacher in teachers]
    return torch.stack(each).mean(0)


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return T² KL(targets || softmax(logits / T)), averaged over the N rows of logits [N, K]: float32 scalar, in nats.

    T² makes the size of the gradient independent of the temperature (Hinton et al. 2015).
    """
    predicted = F.log_softmax(logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(predicted, targets, reduction="batchmean")
