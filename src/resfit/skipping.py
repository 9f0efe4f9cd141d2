"""Leaving the easiest images out of an epoch, by the loss that each had when it was last trained on.

Selection by loss costs nothing here, as every loss is known from training itself. Katharopoulos & Fleuret 2018 and
Jiang et al. 2019 (selective backpropagation) choose by loss as well, from a forward pass of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class EasyImages:
    """Remembers the losses of N training images and leaves the easiest out of an epoch, none of them twice in a row.

    `turns`: in how many epochs each was not left out, int64 [N].
    """

    def __init__(self, count: int, share: float, device: torch.device) -> None:
        self.skipped = int(share * count)
        self.losses = torch.full((count,), torch.inf, device=device)
        self.turns = torch.zeros(count, dtype=torch.int64, device=device)

    def remember(self, index: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Note the losses of the images at `index` [B], from logits [B, K] and labels [B]."""
        self.losses[index] = F.cross_entropy(logits.detach().float(), labels, reduction="none")

    def leave_out(self, order: Tensor) -> Tensor:
        """`order`, indices int64 [N], without the images of lowest loss; the next call leaves these in."""
        easiest = self.losses.argsort(stable=True)[: self.skipped]
        kept = torch.ones(len(self.losses), dtype=torch.bool, device=order.device)
        kept[easiest] = self.losses[easiest].isinf()
        self.losses[easiest] = torch.inf
        return order[kept[order]]
