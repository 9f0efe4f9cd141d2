"""Preprocessing of Pillow images for a trained network, as a torchvision transform."""

from __future__ import annotations

from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import v2

from resfit.data.decode import pixels_of
from resfit.errors import BadInput
from resfit.net import Network


def transform(net: Network) -> v2.Compose:
    """Return a torchvision transform from a Pillow image to a network's input: normalized float32 [C, H, W].

    It rotates (by EXIF orientation), resizes and crops as is done for image folders in training. Raises BadInput if the
    network was not loaded from a model file, because its normalization is then unknown.
    """
    if not net.info.mean:
        raise BadInput("the normalization of the network is unknown (transform): give one that resfit.load returned")
    images = net.spec.input
    return v2.Compose(
        [
            v2.Lambda(partial(_pixels, size=images.size, channels=images.channels)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=list(net.info.mean), std=list(net.info.std)),
        ]
    )


def _pixels(image: Image, *, size: int, channels: int) -> Tensor:
    if not isinstance(image, Image):
        raise BadInput(f"not a Pillow image ({type(image).__name__}): give one, such as Image.fromarray(array)")
    return torch.tensor(pixels_of(image, size=size, channels=channels))
