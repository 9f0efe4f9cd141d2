"""Where a network looked: Grad-CAM.

Shapes: C channels, h x w the last map's side, H x W the image's, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_WARM = torch.tensor([255.0, 80.0, 0.0]).view(3, 1, 1)
_STRENGTH = 0.65


def grad_cam(net: Any, image: Tensor, label: int) -> Tensor:
    """How much each place of an image speaks for class `label`, by the last stage's map: float [H, W] from 0 to 1.

    Selvaraju et al. 2017: channels weighted by the mean gradient of the class's logit, summed, and what is negative
    left out. All zeros where nothing speaks for the class. image: one normalized image, float [1, C, H, W]. The network
    has forward_features and forward_head, as `resfit.build` gives it, in evaluation mode.
    """
    with torch.no_grad():
        features = net.forward_features(image).float()
    features.requires_grad_()
    with torch.enable_grad():
        logit = net.forward_head(features)[0, label]
        (gradient,) = torch.autograd.grad(logit, features)
    weights = gradient.mean((2, 3), keepdim=True)
    cam = (weights * features.detach()).sum(1, keepdim=True).relu()
    cam = F.interpolate(cam, size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    peak = cam.max()
    return cam / peak if peak > 0 else cam


def overlay(pixels: Tensor, cam: Tensor) -> Image:
    """A picture in grey with a warm veil that is densest where `cam`, float [H, W], is 1. pixels: uint8 [C, H, W]."""
    from PIL import Image

    grey = pixels.float().mean(0, keepdim=True).expand(3, -1, -1)
    veil = _STRENGTH * cam
    mixed = ((1 - veil) * grey + veil * _WARM).round().to(torch.uint8)
    return Image.fromarray(mixed.permute(1, 2, 0).numpy())
