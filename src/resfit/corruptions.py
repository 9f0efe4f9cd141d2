"""Image corruptions for robustness tests: fifteen kinds for small images at five severities, seeded.

The kinds are those of Hendrycks & Dietterich 2019. Filters, textures and strengths are resfit's own, so accuracies are
not comparable with published tables. Images are uint8 [N, C, H, W], grey or colour. Lengths are in pixels for a side of
32 pixels and scale with the image.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from resfit.errors import BadInput
from resfit.fields import nearest

if TYPE_CHECKING:
    Pixels = np.ndarray  # float64, one image [H, W, C], or a map [H, W], from 0 to 1
    Damage = Callable[[Pixels, float, np.random.Generator], Pixels]

SET = "resfit-corruptions-1"  # increment when any image of the set changes
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One kind of corruption: `apply(image, strength, rng)` returns the corrupted image; one strength per severity."""

    group: str
    apply: Damage
    strengths: tuple[float, float, float, float, float]


def corrupt(images: np.ndarray, kind: str, severity: int, seed: int = 0) -> np.ndarray:
    """Return corrupted copies of uint8 images [N, C, H, W].

    The random numbers for an image depend only on seed, kind, severity and the image's index.

    Raises BadInput for an unknown kind or severity.
    """
    if kind not in CORRUPTIONS:
        raise BadInput(f"unknown corruption ({kind}): {nearest(kind, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise BadInput(f"severity is {severity!r} ({kind}): give a whole number from 1 to 5")
    corruption, damaged = CORRUPTIONS[kind], np.empty_like(images)
    for index, image in enumerate(images):
        rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), severity, index))
        pixels = corruption.apply(image.transpose(1, 2, 0) / 255, corruption.strengths[severity - 1], rng)
        damaged[index] = np.rint(255 * pixels.clip(0, 1)).transpose(2, 0, 1)
    return damaged


def _gaussian_noise(image: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    return image + rng.normal(0, deviation, image.shape)


def _shot_noise(image: Pixels, photons: float, rng: np.random.Generator) -> Pixels:
    return rng.poisson(image * photons) / photons


def _impulse_noise(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    return np.where(rng.random(image.shape) < share, rng.integers(0, 2, image.shape), image)


def _defocus_blur(image: Pixels, radius: float, rng: np.random.Generator) -> Pixels:
    """Average over a disc with an anti-aliased edge."""
    radius = _scaled(radius, image)
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _filtered(image, (radius + 0.5 - np.hypot(x, y)).clip(0, 1))


def _glass_blur(image: Pixels, distance: float, rng: np.random.Generator) -> Pixels:
    """Replace each pixel by a random nearby one, then blur slightly."""
    moves = rng.uniform(-1, 1, (2, *image.shape[:2])) * _scaled(distance, image)
    return _softened(_resampled(image, moves.round()), _scaled(0.5, image))


def _motion_blur(image: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    """Average along a line in a random direction."""
    return _filtered(image, _line_kernel(_scaled(length, image), rng.uniform(0, math.pi)))


def _zoom_blur(image: Pixels, zoom: float, rng: np.random.Generator) -> Pixels:
    """Average the image with five enlargements about its centre."""
    middle = (np.array(image.shape[:2]) - 1) / 2
    grid = np.indices(image.shape[:2]) - middle[:, None, None]
    zoomed = np.stack([_resampled(image, grid / factor - grid) for factor in np.linspace(1, zoom, 6)])
    return np.asarray(zoomed.mean(0))


def _snow(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """Add bright, slanted streaks of snowflakes to a paler image."""
    flakes = rng.random(image.shape[:2]) ** (1 / amount)
    flakes = np.where(flakes > 0.75, flakes, 0)
    streaks = _filtered(flakes[:, :, None], _line_kernel(_scaled(2.5, image), rng.uniform(0.25, 0.75) * math.pi))
    pale = image + amount * (0.6 - 0.4 * image)
    return pale + 1.5 * streaks


def _frost(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """Blend in ridges of ice, densest at the border."""
    height, width = image.shape[:2]
    ridges = 1 - np.abs(2 * _clouds((height, width), rng) - 1)
    y, x = np.abs(np.linspace(-1, 1, height))[:, None], np.abs(np.linspace(-1, 1, width))
    ice = (amount * (0.35 + 0.65 * np.maximum(y, x)) * (0.4 + ridges**3)).clip(0, 1)[:, :, None]
    return np.asarray(image * (1 - ice) + ice * _tint(image, (0.82, 0.9, 0.97)))


def _fog(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """Blend in a nearly white veil of uneven density."""
    veil = (amount * (0.55 + 0.45 * _clouds(image.shape[:2], rng)))[:, :, None]
    return image * (1 - veil) + 0.92 * veil


def _brightness(image: Pixels, lift: float, rng: np.random.Generator) -> Pixels:
    return image + lift


def _contrast(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    mean = np.asarray(image.mean((0, 1)))
    return np.asarray(mean + share * (image - mean))


def _elastic(image: Pixels, reach: float, rng: np.random.Generator) -> Pixels:
    """Displace pixels smoothly at random, by at most `reach` pixels along each axis."""
    noise = rng.uniform(-1, 1, (*image.shape[:2], 2))
    moves = _softened(noise, _scaled(3, image)).transpose(2, 0, 1)
    return _resampled(image, moves * (_scaled(reach, image) / np.abs(moves).max()))


def _pixelate(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    from PIL import Image

    height, width = image.shape[:2]
    small = (max(1, round(share * width)), max(1, round(share * height)))
    channels = []
    for channel in np.moveaxis(image, 2, 0):
        coarse = Image.fromarray(channel.astype(np.float32)).resize(small, Image.Resampling.BOX)
        channels.append(np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST)))
    return np.stack(channels, axis=2).astype(np.float64)


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8).squeeze()).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file)).reshape(image.shape) / 255


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(group="noise", apply=_gaussian_noise, strengths=(0.03, 0.06, 0.1, 0.14, 0.2)),
    "shot_noise": Corruption(group="noise", apply=_shot_noise, strengths=(250, 90, 40, 20, 10)),
    "impulse_noise": Corruption(group="noise", apply=_impulse_noise, strengths=(0.01, 0.03, 0.06, 0.1, 0.17)),
    "defocus_blur": Corruption(group="blur", apply=_defocus_blur, strengths=(0.6, 0.9, 1.3, 1.8, 2.5)),
    "glass_blur": Corruption(group="blur", apply=_glass_blur, strengths=(0.6, 0.9, 1.3, 1.8, 2.5)),
    "motion_blur": Corruption(group="blur", apply=_motion_blur, strengths=(2, 3, 4.5, 6, 8)),
    "zoom_blur": Corruption(group="blur", apply=_zoom_blur, strengths=(1.08, 1.14, 1.22, 1.32, 1.45)),
    "snow": Corruption(group="weather", apply=_snow, strengths=(0.1, 0.2, 0.3, 0.42, 0.55)),
    "frost": Corruption(group="weather", apply=_frost, strengths=(0.25, 0.42, 0.6, 0.78, 1)),
    "fog": Corruption(group="weather", apply=_fog, strengths=(0.2, 0.35, 0.5, 0.65, 0.8)),
    "brightness": Corruption(group="weather", apply=_brightness, strengths=(0.06, 0.12, 0.2, 0.28, 0.38)),
    "contrast": Corruption(group="digital", apply=_contrast, strengths=(0.75, 0.55, 0.4, 0.28, 0.18)),
    "elastic": Corruption(group="digital", apply=_elastic, strengths=(0.7, 1.2, 1.8, 2.5, 3.5)),
    "pixelate": Corruption(group="digital", apply=_pixelate, strengths=(0.85, 0.7, 0.55, 0.42, 0.3)),
    "jpeg": Corruption(group="digital", apply=_jpeg, strengths=(60, 35, 22, 14, 8)),
}


def _scaled(length: float, image: Pixels) -> float:
    """Scale a length for a side of 32 pixels to the longer side of this image."""
    height, width = image.shape[:2]
    return length * float(max(height, width)) / 32


def _softened(image: Pixels, sigma: float) -> Pixels:
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="reflect"))


def _filtered(image: Pixels, kernel: Pixels) -> Pixels:
    return np.asarray(ndimage.convolve(image, (kernel / kernel.sum())[:, :, None], mode="reflect"))


def _resampled(image: Pixels, moves: Pixels) -> Pixels:
    """Return the image sampled bilinearly at each [y, x] plus `moves`[:, y, x] pixels."""
    places: Any = np.indices(image.shape[:2]) + moves
    channels = [
        ndimage.map_coordinates(channel, places, order=1, mode="reflect") for channel in np.moveaxis(image, 2, 0)
    ]
    return np.stack(channels, axis=2)


def _line_kernel(length: float, angle: float) -> Pixels:
    """Return an anti-aliased line of `length` pixels through the centre, as a kernel that is not normalized."""
    reach = math.ceil(length / 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    steps = np.linspace(-length / 2, length / 2, 4 * reach + 1)[:, None, None]
    near_y, near_x = 1 - np.abs(y - steps * math.sin(angle)), 1 - np.abs(x - steps * math.cos(angle))
    return np.asarray((near_y.clip(0) * near_x.clip(0)).sum(0))


def _clouds(shape: tuple[int, ...], rng: np.random.Generator) -> Pixels:
    """Return a smooth random map [H, W] from 0 to 1: four octaves of 2 to 16 values a side, each half as strong."""
    from PIL import Image

    height, width = shape
    total = np.zeros((height, width))
    for octave in range(4):
        grid = Image.fromarray(rng.random((2 << octave,) * 2, dtype=np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    return np.asarray((total - total.min()) / max(float(np.ptp(total)), 1e-9))


def _tint(image: Pixels, colour: tuple[float, float, float]) -> Pixels:
    """The colour, or its mean if the image does not have three channels."""
    return np.array(colour) if image.shape[2] == 3 else np.array(colour).mean(keepdims=True)
