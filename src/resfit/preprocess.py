"""From a picture to what a network takes, as a torchvision transform."""

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
    """A torchvision transform from a PIL image to a trained network's input: normalized float32 [C, H, W].

    A picture is turned, scaled and cut as the images of a folder are for training. Raises BadInput for a network that
    came from no model file, as nothing says how its images are normalized.
    """
    if not net.info.mean:
        raise BadInput("a network of unknown normalization (transform): give one that resfit.load gave")
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
