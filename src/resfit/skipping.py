"""Leaving easy images out of an epoch without a bias: InfoBatch (Qin et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor


class EasyImages:
    """Which of N training images are easy, by the loss that each had when it was last trained on.

    An image is easy when its loss is below the mean. `keep` leaves each easy image out with probability `share`; those
    that stay weigh 1 / (1 - share), so that the gradient's expectation is that of all images.
    """

    def __init__(self, count: int, share: float, device: torch.device) -> None:
        self.share = share
        self.losses = torch.full((count,), torch.nan, device=device)
        self.weights = torch.ones(count, device=device)

    def keep(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """The part of `order`, indices int64 [N], that this epoch trains on; an image without a loss always stays."""
        easy = self.losses < self.losses.nanmean()
        drawn = torch.rand(len(easy), generator=generator, device=generator.device).to(easy.device)
        self.weights = torch.where(easy, 1 / (1 - self.share), 1.0)
        return order[~(easy & (drawn < self.share))[order]]

    def keep_all(self) -> None:
        """Train on every image alike."""
        self.weights.fill_(1.0)

    def weighted_mean(self, losses: Tensor, index: Tensor) -> Tensor:
        """The mean of the losses [B] of the images at `index`, by their weights; remembers the losses."""
        self.losses[index] = losses.detach().float()
        weights = self.weights[index]
        return (losses * weights).sum() / weights.sum()

    def state_dict(self) -> dict[str, Tensor]:
        """What an exact resume needs."""
        return {"losses": self.losses, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        self.losses.copy_(state["losses"])
        self.weights.copy_(state["weights"])
