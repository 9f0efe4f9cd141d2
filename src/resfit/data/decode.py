"""Image files to pixels.

An image is turned as its EXIF data says; its short side is scaled to the wanted size and the middle is cut out. 16-bit
images are scaled to 8 bits. Transparency is laid on white, as most transparent drawings are made for a light page.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resfit.data.bar import bar
from resfit.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})

# What such a file may contain whatever its extension says; Pillow's other decoders are kept away from unknown files.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_BLOCK = 256  # images that are decoded at a time
_NAMED = 10  # unreadable images that an error names


def decode(path: Path, *, size: int, channels: int) -> np.ndarray:
    """The pixels of an image file, uint8 [channels, size, size]; raises what Pillow raises where it is damaged."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=_FORMATS) as file:
        image = _opaque(_eight_bit(ImageOps.exif_transpose(file))).convert("L" if channels == 1 else "RGB")
    square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def decode_all(files: Sequence[Path], *, root: Path, size: int, channels: int) -> Iterator[np.ndarray]:
    """The pixels of all files in blocks, uint8 [n, channels, size, size].

    Every file is tried before BadInput is raised, which counts the unreadable ones and names the first by their place
    under `root`.
    """
    from PIL import Image

    unreadable: list[Path] = []
    attempt = partial(_attempt, size=size, channels=channels)
    with bar("decoding", len(files)) as advance, ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(files), _BLOCK):
            block = files[start : start + _BLOCK]
            pixels = list(pool.map(attempt, block))
            unreadable += [path for path, found in zip(block, pixels, strict=True) if found is None]
            if not unreadable:
                yield np.stack([found for found in pixels if found is not None])
            advance(len(block))
    if unreadable:
        names = ", ".join(path.relative_to(root).as_posix() for path in unreadable[:_NAMED])
        more = f" and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        raise BadInput(f"{len(unreadable)} unreadable of {len(files)} images ({names}{more}): repair or remove them")


def _attempt(path: Path, *, size: int, channels: int) -> np.ndarray | None:
    try:
        return decode(path, size=size, channels=channels)
    except Exception:  # decoders of damaged files may raise anything
        return None


def _eight_bit(image: Image) -> Image:
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))


def _opaque(image: Image) -> Image:
    from PIL import Image

    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page
