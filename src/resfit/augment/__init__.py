"""Batch augmentations that run on the images' device: pure functions of (images, generator, parameters).

The same generator state gives the same result. images: uint8 [N, C, H, W]; the generator may be on the CPU or on the
images' device. Each operation is a deterministic function of per-image parameters; its random version draws them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resfit.augment.colour import adjust_brightness, adjust_contrast, adjust_saturation, random_adjust, random_blur
from resfit.augment.geometry import (
    alternating_flip,
    flip_coins,
    random_crop,
    random_cutout,
    random_flip,
    random_rotate,
    random_translate,
)
from resfit.augment.mixing import mix
from resfit.augment.policy import auto_augment, rand_augment, trivial_augment
from resfit.recipe import AugmentConfig

__all__ = ["augment", "flip_coins", "mix"]


def augment(
    images: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    coins: Tensor | None = None,
    epoch: int | Tensor,
    fill: Tensor | None = None,
) -> Tensor:
    """Apply the augmentations that `config` enables, in its documented order up to cutout; labels do not change.

    images: uint8 [N, C, H, W], never modified; returned as they are if nothing is enabled. coins: bool [N], which
    images an alternating flip mirrors in even epochs (see `flip_coins`); nothing else needs them. epoch: number of
    epochs completed before this one, either one number or one per image, int64 [N]. fill: uint8 [C], the colour of
    cutout; black if None.
    """
    if config.policy == "trivial":
        images = trivial_augment(images, generator)
    elif config.policy == "rand":
        images = rand_augment(images, generator)
    elif config.policy == "autoaugment":
        images = auto_augment(images, generator)
    if config.crop:
        images = random_crop(images, generator, config.crop, config.crop_mode)
    if config.flip == "random":
        images = random_flip(images, generator)
    elif config.flip == "alternating":
        assert coins is not None
        images = alternating_flip(images, coins, epoch)
    if config.rotate:
        images = random_rotate(images, generator, config.rotate)
    if config.translate:
        images = random_translate(images, generator, config.translate)
    images = _jitter(images, config, generator)
    if config.blur:
        images = random_blur(images, generator, config.blur)
    return random_cutout(images, generator, config.cutout, fill) if config.cutout else images


def _jitter(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    for adjust, strength in (
        (adjust_brightness, config.brightness),
        (adjust_contrast, config.contrast),
        (adjust_saturation, config.saturation),
    ):
        if strength:
            images = random_adjust(images, generator, adjust, strength)
    return images
