"""Random policies: each image takes its own operation at its own strength.

Operations and strengths are those of torchvision's v2 TrivialAugmentWide and RandAugment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from resfit.augment import colour, geometry

BINS = 31  # strengths lie on a grid of so many steps

# Each takes images uint8 [N, C, H, W] and strengths float64 [N].
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
}


class Span(NamedTuple):
    """Strengths of an operation, weakest to strongest; of either sign, or in whole numbers, where it says so."""

    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False
    whole: bool = False


def trivial_spans() -> dict[str, Span]:
    """TrivialAugment's "wide" strengths (Müller & Hutter 2021, table 7)."""
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
    """RandAugment's strengths (Cubuk et al. 2020), for images of this size in pixels."""
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


def trivial_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """One operation at one strength for each image, both uniform (Müller & Hutter 2021)."""
    spans = trivial_spans()
    return apply(images, list(spans), *draw(len(images), spans, generator))


def rand_augment(images: Tensor, generator: torch.Generator, operations: int = 2, level: int = 9) -> Tensor:
    """So many operations in a row for each image, uniform and with repetition, all at one level of 0 to 30.

    Cubuk et al. 2020, with torchvision's defaults.
    """
    height, width = images.shape[-2:]
    spans = rand_spans(height, width)
    for _ in range(operations):
        images = apply(images, list(spans), *draw(len(images), spans, generator, level))
    return images


def draw(
    count: int, spans: dict[str, Span], generator: torch.Generator, level: int | None = None
) -> tuple[Tensor, Tensor]:
    """Which operation, int64 [count], and how strong, float64 [count]; a level that isn't given is uniform."""
    device = generator.device
    choice = torch.randint(len(spans), (count,), generator=generator, device=device)
    bins = torch.randint(BINS, (count,), generator=generator, device=device)
    sign = 1 - 2 * torch.randint(2, (count,), generator=generator, device=device)
    strengths = torch.stack([strengths_of(span) for span in spans.values()]).to(device)
    signed = torch.tensor([span.signed for span in spans.values()], device=device)
    strength = strengths[choice, bins if level is None else torch.full_like(bins, level)]
    return choice, torch.where(signed[choice], strength * sign, strength)


def strengths_of(span: Span) -> Tensor:
    """The grid of an operation's strengths: float64 [BINS], rounded to float32 as torchvision's is."""
    strengths = torch.linspace(span.weakest, span.strongest, BINS, dtype=torch.float32)
    return (strengths.round() if span.whole else strengths).double()


def apply(images: Tensor, names: list[str], choice: Tensor, strength: Tensor) -> Tensor:
    """Give image i operation names[choice[i]] at strength[i]; one sub-batch an operation.

    The sizes of the sub-batches are read by the host: with the generator on a GPU this waits for it, once.
    """
    sizes = torch.bincount(choice, minlength=len(names)).tolist()
    order = choice.argsort().to(images.device)
    strength = strength.to(images.device)
    result = torch.empty_like(images)
    for name, rows in zip(names, torch.split(order, sizes), strict=True):
        if len(rows):
            result[rows] = OPERATIONS[name](images[rows], strength[rows])
    return result
