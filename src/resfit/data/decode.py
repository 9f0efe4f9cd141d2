"""Decode image files to pixels.

The EXIF orientation is applied, the short side is scaled to the target size, and the centre is cropped. 16-bit images
are scaled to 8 bits; 32-bit and floating-point images are rejected, because their white level is unknown. Transparent
pixels are composited on white, as most transparent drawings are made for a light page.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from resfit.data.bar import bar
from resfit.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

S = TypeVar("S", bound="Path | Image")

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# Formats accepted, whatever a file's extension says; Pillow's other decoders are not exposed to untrusted files.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_BLOCK = 256  # images decoded at a time
_NAMED = 10  # maximum number of unreadable images listed in an error
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF tag and its value for inverted greys


def decode(path: Path, *, size: int, channels: int) -> np.ndarray:
    """Return the pixels of an image file, uint8 [channels, size, size].

    Raises Pillow's exceptions if it is damaged, or a decompression bomb: an image too large to be safe.
    """
    from PIL import Image

    with Image.open(path, formats=_FORMATS) as file:
        if Image.MAX_IMAGE_PIXELS and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        return pixels_of(file, size=size, channels=channels)


def pixels_of(image: Image, *, size: int, channels: int) -> np.ndarray:
    """Return the pixels of an image opened by Pillow, uint8 [channels, size, size]."""
    from PIL import Image, ImageOps

    image = _opaque(_eight_bit(image)).convert("L" if channels == 1 else "RGB")
    square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def decode_all(files: Sequence[Path], *, root: Path, size: int, channels: int) -> Iterator[np.ndarray]:
    """Yield the pixels of all files in blocks, uint8 [n, channels, size, size].

    Every file is tried before BadInput is raised, which gives the number of unreadable files and lists the first ones
    by their paths relative to `root`.
    """
    unreadable: list[tuple[Path, Exception]] = []
    for block in decode_each(files, size=size, channels=channels):
        pixels = [found for _, found in block if not isinstance(found, Exception)]
        unreadable += [(path, found) for path, found in block if isinstance(found, Exception)]
        if not unreadable:
            yield np.stack(pixels)
    if unreadable:
        named = (f"{path.relative_to(root).as_posix()}, {reason(error)}" for path, error in unreadable[:_NAMED])
        more = f"; and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        told = f"{len(unreadable)} of {len(files)} images are unreadable ({'; '.join(named)}{more})"
        raise BadInput(f"{told}: repair or remove them")


def decode_each(sources: Sequence[S], *, size: int, channels: int) -> Iterator[list[tuple[S, np.ndarray | Exception]]]:
    """Yield blocks of (source, pixels or exception); pixels are uint8 [channels, size, size]."""
    attempt = partial(_attempt, size=size, channels=channels)
    with bar("decoding", len(sources)) as advance, ThreadPoolExecutor() as pool:
        for start in range(0, len(sources), _BLOCK):
            block = sources[start : start + _BLOCK]
            with _quietly():
                found = list(pool.map(attempt, block))
            yield list(zip(block, found, strict=True))
            advance(len(block))


def decode_one(file: Path, *, size: int, channels: int) -> np.ndarray | str:
    """Return the pixels of an image file, uint8 [channels, size, size], or a text that says what is wrong with it."""
    with _quietly():
        found = _attempt(file, size=size, channels=channels)
    return reason(found) if isinstance(found, Exception) else found


def reason(error: Exception) -> str:
    """Return what is wrong with an image as text, from the exception that its decoder raised."""
    from PIL import Image, UnidentifiedImageError

    match error:
        case UnidentifiedImageError():
            return "not an image of a known format"
        case IsADirectoryError():
            return "a folder without images"
        case Image.DecompressionBombError():
            return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, scale it down"
        case OSError(strerror=str(why)):
            return why.lower()
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@contextmanager
def _quietly() -> Iterator[None]:
    """Ignore Pillow's warnings about damaged EXIF data and large images; no check depends on them."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _attempt(source: Path | Image, *, size: int, channels: int) -> np.ndarray | Exception:
    try:
        if isinstance(source, Path):
            return decode(source, size=size, channels=channels)
        return pixels_of(source, size=size, channels=channels)
    except Exception as error:  # decoders may raise any exception for damaged files
        return error


def _eight_bit(file: Image) -> Image:
    """Return an opened image upright, with 8 bits per channel."""
    from PIL import Image, ImageOps
    from PIL.TiffImagePlugin import TiffImageFile

    image = ImageOps.exif_transpose(file)
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if image.mode == "I" and file.format != "PNG":
        raise ValueError("signed or 32-bit pixels of unknown range")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    # Pillow inverts such greys of 8 bits only.
    if isinstance(file, TiffImageFile) and file.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 65_535 - values
    eight = Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        eight.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return eight


def _opaque(image: Image) -> Image:
    from PIL import Image

    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page
