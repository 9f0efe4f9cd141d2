"""Drawings of some CIFAR-10 classes: sample images for the demo when the data set is not available.

Each drawing lists shapes on a 64 x 64 canvas from back to front: a Pillow shape, its colour and its coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resfit.data.decode import pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 64
_SHAPES = {
    "airplane": """
        rectangle #8fc3ee 0 0 64 64
        polygon #e8ecf0 4 30 12 26 48 27 60 32 52 37 12 36
        polygon #b8c0c8 26 33 38 33 24 54 17 54
        polygon #c8d0d8 30 28 38 28 30 14 25 14
        polygon #d04848 5 30 14 28 9 14 3 14
    """,
    "automobile": """
        rectangle #cdd8e0 0 0 64 64
        rectangle #70747a 0 40 64 64
        polygon #c02020 14 34 22 22 44 22 52 34
        polygon #b8d8e8 19 33 24 25 32 25 32 33
        polygon #b8d8e8 34 33 34 25 43 25 48 33
        rectangle #d02828 4 33 60 46
        ellipse #181818 9 39 23 53
        ellipse #181818 41 39 55 53
        ellipse #b0b0b0 13 43 19 49
        ellipse #b0b0b0 45 43 51 49
    """,
    "bird": """
        rectangle #b0d4f0 0 0 64 64
        ellipse #906040 18 24 46 44
        ellipse #a06848 38 14 54 30
        polygon #e0a020 53 20 62 23 53 25
        polygon #704828 20 32 2 40 4 46 24 40
        ellipse #101010 46 19 49 22
        rectangle #604020 28 43 30 54
        rectangle #604020 35 43 37 54
        rectangle #604830 0 54 64 58
    """,
    "cat": """
        rectangle #c8b8a0 0 0 64 64
        rectangle #a08868 0 40 64 64
        ellipse #808080 12 14 52 54
        polygon #707070 13 30 15 4 31 17
        polygon #707070 51 30 49 4 33 17
        ellipse #d8d040 20 27 29 36
        ellipse #d8d040 35 27 44 36
        ellipse #101010 23 28 26 35
        ellipse #101010 38 28 41 35
        polygon #d09090 28 40 36 40 32 44
        ellipse #c0c0c0 24 44 40 51
    """,
    "dog": """
        rectangle #c8c8b0 0 0 64 64
        rectangle #80a050 0 40 64 64
        ellipse #c09058 14 12 50 52
        ellipse #805028 6 12 20 44
        ellipse #805028 44 12 58 44
        ellipse #e8d0a8 23 32 41 52
        ellipse #181010 27 33 37 41
        ellipse #181010 21 23 27 30
        ellipse #181010 37 23 43 30
        ellipse #d06060 29 44 35 54
    """,
    "frog": """
        rectangle #5c4a34 0 0 64 64
        rectangle #4a3c2a 0 40 64 64
        ellipse #5a9a30 12 24 54 54
        ellipse #6cb03c 14 14 28 28
        ellipse #6cb03c 36 14 50 28
        ellipse #101010 18 17 25 24
        ellipse #101010 40 17 47 24
        ellipse #508828 4 42 24 58
        ellipse #508828 42 42 62 58
        polygon #304818 20 38 46 38 33 44
    """,
    "ship": """
        rectangle #a8cce8 0 0 64 64
        rectangle #2a5c8c 0 40 64 64
        polygon #b03030 4 38 60 38 53 50 10 50
        rectangle #303840 8 34 56 38
        rectangle #f0f0f0 22 24 46 34
        rectangle #e0e0e0 28 18 40 24
        rectangle #d0a020 31 9 36 18
    """,
    "truck": """
        rectangle #b8d0e0 0 0 64 64
        rectangle #686868 0 40 64 64
        rectangle #e8e8e8 4 14 42 44
        polygon #2858a8 43 24 53 24 60 34 60 46 43 46
        polygon #b8d8e8 47 27 52 27 57 34 47 34
        rectangle #303030 4 44 60 47
        ellipse #181818 8 42 20 54
        ellipse #181818 22 42 34 54
        ellipse #181818 45 42 57 54
    """,
}


def drawings(classes: Sequence[str], *, size: int, channels: int) -> list[tuple[Tensor, str]]:
    """Return a drawing, uint8 [channels, size, size], with its class for each of `classes` that has one."""
    drawn = [name for name in classes if name in _SHAPES]
    return [(torch.from_numpy(pixels_of(_draw(name), size=size, channels=channels).copy()), name) for name in drawn]


def _draw(name: str) -> Image:
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (_SIDE, _SIDE))
    draw = ImageDraw.Draw(canvas)
    for line in _SHAPES[name].strip().splitlines():
        shape, colour, *coordinates = line.split()
        getattr(draw, shape)([int(number) for number in coordinates], fill=colour)
    return canvas
