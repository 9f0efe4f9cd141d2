"""Grad-CAM: compute a heat map of the image regions that speak for a class, and draw it over the image.

Shapes: C channels, H x W pixels of the image.
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
    """Return the Grad-CAM heat map of an image for class `label`: float [H, W] from 0 to 1.

    The channels of the last stage's feature map are weighted by the mean gradient of the class's logit, summed, and
    clamped at 0 (Selvaraju et al. 2017). All zeros if nothing speaks for the class. `image` is one normalized image,
    float [1, C, H, W]. The network must be in evaluation mode and have forward_features and forward_head, like those
    that `resfit.build` returns.
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
    """Draw the heat map `cam`, float [H, W], in orange over the greyscale version of `pixels`, uint8 [C, H, W]."""
    from PIL import Image

    grey = pixels.float().mean(0, keepdim=True).expand(3, -1, -1)
    veil = _STRENGTH * cam
    mixed = ((1 - veil) * grey + veil * _WARM).round().to(torch.uint8)
    return Image.fromarray(mixed.permute(1, 2, 0).numpy())
