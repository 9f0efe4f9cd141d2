"""TrivialAugment, RandAugment and AutoAugment: random operations and strengths per image.

Operations and strengths are those of torchvision's v2 TrivialAugmentWide, RandAugment and AutoAugment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from resfit.augment import colour, geometry

BINS = 31  # number of strength levels

# Each takes images, uint8 [N, C, H, W], and strengths, float64 [N].
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda images, strength: images,
    "shear_x": geometry.shear_x,
    "shear_y": geometry.shear_y,
    "translate_x": lambda images, pixels: geometry.translate(images, torch.zeros_like(pixels), pixels.trunc()),
    "translate_y": lambda images, pixels: geometry.translate(images, pixels.trunc(), torch.zeros_like(pixels)),
    "rotate": geometry.rotate,
    "brightness": lambda images, excess: colour.adjust_brightness(images, 1 + excess),
    "color": lambda images, excess: colour.adjust_saturation(images, 1 + excess),
    "contrast": lambda images, excess: colour.adjust_contrast(images, 1 + excess),
    "sharpness": lambda images, excess: colour.adjust_sharpness(images, 1 + excess),
    "posterize": colour.posterize,
    "solarize": lambda images, fraction: colour.solarize(images, 255 * fraction),
    "autocontrast": lambda images, strength: colour.autocontrast(images),
    "equalize": lambda images, strength: colour.equalize(images),
    "invert": lambda images, strength: colour.invert(images),
}

# Pairs of (operation, probability, level from 0 to 9); level 0 if the operation has no strength: Cubuk et al. 2019,
# table 7.
CIFAR10_POLICY = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)
LEVELS = 10  # number of strength levels of that policy


class Span(NamedTuple):
    """Range of an operation's strength, weakest to strongest; signed: either sign; whole: rounded to whole numbers."""

    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False
    whole: bool = False


def trivial_spans() -> dict[str, Span]:
    """Return TrivialAugment's "wide" strength ranges (Müller & Hutter 2021, table 7)."""
    return {
        "identity": Span(),
        **dict.fromkeys(("shear_x", "shear_y"), Span(0, 0.99, True)),
        **dict.fromkeys(("translate_x", "translate_y"), Span(0, 32, True)),
        "rotate": Span(0, 135, True),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), Span(0, 0.99, True)),
        "posterize": Span(8, 2, whole=True),
        "solarize": Span(1, 0),
        "autocontrast": Span(),
        "equalize": Span(),
    }


def rand_spans(height: int, width: int) -> dict[str, Span]:
    """Return RandAugment's strength ranges (Cubuk et al. 2020) for images of this size in pixels."""
    return {
        "identity": Span(),
        **dict.fromkeys(("shear_x", "shear_y"), Span(0, 0.3, True)),
        "translate_x": Span(0, 150 / 331 * width, True),
        "translate_y": Span(0, 150 / 331 * height, True),
        "rotate": Span(0, 30, True),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), Span(0, 0.9, True)),
        "posterize": Span(8, 4, whole=True),
        "solarize": Span(1, 0),
        "autocontrast": Span(),
        "equalize": Span(),
    }


def auto_spans(height: int, width: int) -> dict[str, Span]:
    """Return AutoAugment's strength ranges for images of this size in pixels."""
    return {**rand_spans(height, width), "invert": Span()}


def trivial_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply one operation to each image; operation and strength are both uniform (Müller & Hutter 2021)."""
    spans = trivial_spans()
    return apply(images, list(spans), *draw(len(images), spans, generator))


def rand_augment(images: Tensor, generator: torch.Generator, operations: int = 2, level: int = 9) -> Tensor:
    """Apply `operations` random operations to each image, uniform with repetition, all at one level from 0 to 30.

    Cubuk et al. 2020, with torchvision's defaults.
    """
    height, width = images.shape[-2:]
    spans = rand_spans(height, width)
    for _ in range(operations):
        images = apply(images, list(spans), *draw(len(images), spans, generator, level))
    return images


def auto_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply to each image one of the 25 operation pairs found for CIFAR-10, each operation with its probability.

    Cubuk et al. 2019.
    """
    height, width = images.shape[-2:]
    spans = auto_spans(height, width)
    choices, strengths = draw_pairs(len(images), spans, generator)
    for choice, strength in zip(choices.unbind(1), strengths.unbind(1), strict=True):
        images = apply(images, list(spans), choice, strength)
    return images


def draw_pairs(count: int, spans: dict[str, Span], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw operations, int64 [count, 2], and strengths, float64 [count, 2]; identity if the operation is not applied.

    The sign of a strength is a fair coin.
    """
    names, device = list(spans), generator.device
    pair = torch.randint(len(CIFAR10_POLICY), (count,), generator=generator, device=device)
    coin = torch.rand(count, 2, generator=generator, device=device)
    sign = 1 - 2 * torch.randint(2, (count, 2), generator=generator, device=device)
    table = [[(names.index(name), chance, level) for name, chance, level in pair] for pair in CIFAR10_POLICY]
    operation, chance, level = torch.tensor(table, device=device)[pair].unbind(2)
    strength = _strength(spans, operation.long(), level.long(), sign, LEVELS)
    return torch.where(coin < chance, operation.long(), names.index("identity")), strength


def draw(
    count: int, spans: dict[str, Span], generator: torch.Generator, level: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one operation, int64 [count], and strength, float64 [count], per image; the level is uniform if None."""
    device = generator.device
    choice = torch.randint(len(spans), (count,), generator=generator, device=device)
    bins = torch.randint(BINS, (count,), generator=generator, device=device)
    sign = 1 - 2 * torch.randint(2, (count,), generator=generator, device=device)
    return choice, _strength(spans, choice, bins if level is None else torch.full_like(bins, level), sign, BINS)


def _strength(spans: dict[str, Span], operation: Tensor, level: Tensor, sign: Tensor, bins: int) -> Tensor:
    """Return each operation's strength at `level` of `bins` levels, float64; `sign` applies to signed operations."""
    strengths = torch.stack([strengths_of(span, bins) for span in spans.values()]).to(level.device)
    signed = torch.tensor([span.signed for span in spans.values()], device=level.device)
    strength = strengths[operation, level]
    return torch.where(signed[operation], strength * sign, strength)


def strengths_of(span: Span, bins: int = BINS) -> Tensor:
    """Return the grid of an operation's strengths: float64 [bins], rounded to float32 as in torchvision."""
    strengths = torch.linspace(span.weakest, span.strongest, bins, dtype=torch.float32)
    return (strengths.round() if span.whole else strengths).double()


def apply(images: Tensor, names: list[str], choice: Tensor, strength: Tensor) -> Tensor:
    """Apply operation names[choice[i]] at strength[i] to image i; one sub-batch per operation.

    The host reads the sizes of the sub-batches: with the generator on a GPU this is one synchronization.
    """
    sizes = torch.bincount(choice, minlength=len(names)).tolist()
    order = choice.argsort().to(images.device, non_blocking=True)
    strength = strength.to(images.device, non_blocking=True)
    result = torch.empty_like(images)
    for name, rows in zip(names, torch.split(order, sizes), strict=True):
        if len(rows):
            result[rows] = OPERATIONS[name](images[rows], strength[rows])
    return result
