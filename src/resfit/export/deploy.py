"""Prepare a network for deployment: include input normalization, fold norms into the preceding convolutions.

Shapes: N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resfit.layers import Norm
from resfit.net import Network

InputKind = Literal["uint8", "float"]


class Deployed(nn.Module):
    """A network with input normalization: images [N, C, H, W], uint8 (0..255) or float32 (0..1), to logits [N, K]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, net: Network, kind: InputKind) -> None:
        super().__init__()
        self.net = net
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (net.info.mean, net.info.std))
        self.register_buffer("scale", 1 / (std * 255 if kind == "uint8" else std))
        self.register_buffer("shift", mean / std)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize as in training and return the logits."""
        logits: Tensor = self.net(images.float() * self.scale - self.shift)
        return logits


def fold_norms(net: Network) -> tuple[Network, int]:
    """Return a copy of `net` in eval mode with norms folded into the preceding convolutions, and their number.

    A norm after a max-pool is folded through it if all its scales are non-negative, so that the order of values is
    kept.
    """
    folded = copy.deepcopy(net).eval()
    count = sum(_fold(layers) for layers in folded.modules() if isinstance(layers, nn.Sequential))
    return folded, count


@torch.no_grad()
def _fold(layers: nn.Sequential) -> int:
    """Fold the norms of one nn.Sequential; return their number."""
    count, conv, pooled = 0, None, False
    for name, layer in list(layers.named_children()):
        if isinstance(layer, nn.Conv2d):
            conv, pooled = name, False
        elif isinstance(layer, nn.MaxPool2d):
            pooled = True
        elif isinstance(layer, Norm) and conv is not None and not (pooled and bool((layer.weight < 0).any())):
            layers.set_submodule(conv, fuse_conv_bn_eval(layers.get_submodule(conv), layer))  # type: ignore[type-var]
            layers.set_submodule(name, nn.Identity())
            count += 1
            conv = None
        else:
            conv = None
    return count
