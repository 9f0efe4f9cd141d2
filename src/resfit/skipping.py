"""Skip the easiest images in an epoch: those with the lowest loss when they were last trained on.

The losses are known from training, so the selection costs nothing. Katharopoulos & Fleuret 2018 and Jiang et al. 2019
(selective backpropagation) also select by loss, but compute it in an extra forward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class EasyImages:
    """Tracks the losses of N training images and skips the easiest in an epoch, none of them twice in a row.

    `turns` counts the epochs in which each image was not skipped, int64 [N].
    """

    def __init__(self, count: int, share: float, device: torch.device) -> None:
        self.skipped = int(share * count)
        self.losses = torch.full((count,), torch.inf, device=device)
        self.turns = torch.zeros(count, dtype=torch.int64, device=device)

    def remember(self, index: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Store the losses of the images at `index` [B], given their logits [B, K] and labels [B]."""
        self.losses[index] = F.cross_entropy(logits.detach().float(), labels, reduction="none")

    def leave_out(self, order: Tensor) -> Tensor:
        """Return `order`, indices int64 [N], without the images of lowest loss; those are not skipped the next time."""
        easiest = self.losses.argsort(stable=True)[: self.skipped]
        kept = torch.ones(len(self.losses), dtype=torch.bool, device=order.device)
        kept[easiest] = self.losses[easiest].isinf()
        self.losses[easiest] = torch.inf
        return order[kept[order]]
