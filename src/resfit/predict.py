"""Predict the classes of image files, folders of images, or Pillow images with a trained network."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from resfit.data.decode import decode_each, reason
from resfit.data.folder import is_image, visible_files
from resfit.data.normalize import normalizer
from resfit.device import pick_device
from resfit.errors import BadInput
from resfit.evaluate import predict_logits
from resfit.modelfile import load
from resfit.net import Network


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """A class and its probability, from 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, in decreasing order of probability."""

    image: str
    classes: tuple[ClassProbability, ...]


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image that could not be read, and the reason."""

    image: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions in the order of the images, and the images that could not be read.

    `temperature` calibrated the probabilities; None means that they are not calibrated, because the network's run had
    no validation split to fit it.
    """

    temperature: float | None
    images: tuple[Prediction, ...]
    unreadable: tuple[Unreadable, ...]


def predict(
    target: str | Path | Network,
    images: str | Path | Image | Iterable[str | Path | Image],
    *,
    top: int | None = None,
    device: str = "auto",
) -> Predictions:
    """Predict the `top` most probable classes of each image, or all classes, with a trained network.

    `target` is a run folder, a model file or a network, which stays where it is: `device` "auto" means its own device,
    and another one a copy of it. `images` are files, folders (searched recursively) or Pillow
    images; they are resized, cropped and normalized as in training. Images that cannot be read are listed in the result
    and do not stop the others. Raises BadInput if the network cannot be used.
    """
    if top is not None and top < 1:
        raise BadInput(f"top is {top} (--top): give at least 1")
    net = _on_device(target, device)
    if len(net.info.classes) != net.spec.num_classes:
        raise BadInput("the network has no class names (target): give one that resfit.load returned, or resfit.save it")
    if net.spec.input.channels not in (1, 3):
        raise BadInput(f"the network takes {net.spec.input.channels} channels (target): pictures have 1 or 3")
    answers: list[Prediction] = []
    unreadable: list[Unreadable] = []
    names, sources = _listed([images] if isinstance(images, str | Path | Image) else images)
    left = iter(names)
    for block in decode_each(sources, size=net.spec.input.size, channels=net.spec.input.channels):
        named = [(next(left), found) for _, found in block]
        unreadable += [Unreadable(image=name, reason=reason(e)) for name, e in named if isinstance(e, Exception)]
        read = [(name, pixels) for name, pixels in named if not isinstance(pixels, Exception)]
        if read:
            best = _top_classes(net, np.stack([pixels for _, pixels in read]), top)
            answers += [
                Prediction(image=name, classes=likeliest) for (name, _), likeliest in zip(read, best, strict=True)
            ]
    return Predictions(temperature=net.info.temperature, images=tuple(answers), unreadable=tuple(unreadable))


def _on_device(target: str | Path | Network, device: str) -> Network:
    """Return the network on a device; one that was given is neither moved nor changed."""
    if not isinstance(target, Network):
        return load(target).to(pick_device(device))
    return target if device == "auto" else copy.deepcopy(target).to(pick_device(device))


def _top_classes(net: Network, images: np.ndarray, top: int | None) -> list[tuple[ClassProbability, ...]]:
    """Return the most probable classes of each image of a batch, uint8 [N, C, H, W]."""
    info, device = net.info, next(net.parameters()).device
    batch = torch.from_numpy(images).to(device)
    logits, _ = predict_logits(net, batch, normalizer(info.mean, info.std, device))
    best = (logits / (info.temperature or 1.0)).softmax(1).topk(min(top or len(info.classes), len(info.classes)))
    return [
        tuple(ClassProbability(name=info.classes[i], probability=p) for i, p in zip(places, values, strict=True))
        for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _listed(images: Iterable[str | Path | Image]) -> tuple[list[str], list[Path | Image]]:
    """Return the names and the sources of all images, with folders replaced by the images in them."""
    names: list[str] = []
    sources: list[Path | Image] = []
    for image in images:
        if isinstance(image, str) and "://" in image:
            raise BadInput(f"a URL, not a file ({image}): download it first")
        if not isinstance(image, str | Path | Image):
            raise BadInput(f"not an image ({type(image).__name__}): give a path or a Pillow image")
        found = _files(Path(image)) if isinstance(image, str | Path) else [image]
        names += [str(one) if isinstance(one, Path) else f"image {len(names) + 1}" for one in found]
        sources += found
    return names, sources


def _files(path: Path) -> list[Path]:
    """Return the images in a folder, in natural order; for a file, or a folder without readable images, [path]."""
    if not path.is_dir():
        return [path]
    try:
        return sorted(filter(is_image, visible_files(path)), key=_natural) or [path]
    except OSError:
        return [path]


def _natural(path: Path) -> list[tuple[list[str | int], str]]:
    """Sort key for natural order within each folder: 2.png before 10.png."""
    return [
        ([int(x) if x.isdecimal() else x.casefold() for x in re.split(r"(\d+)", part)], part) for part in path.parts
    ]
