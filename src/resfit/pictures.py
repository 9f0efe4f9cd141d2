"""Encode uint8 images as base64 PNG strings, for records and reports."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor


def png(image: Tensor) -> str:
    """Encode a uint8 image [C, H, W], grey or RGB, as a base64 PNG."""
    from PIL import Image

    pixels = image.cpu().permute(1, 2, 0).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def png_grid(images: Tensor, columns: int) -> str:
    """Encode uint8 images [N, C, H, W] as one base64 PNG: a grid of `columns` columns with gaps of one pixel."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    grid = torch.full((channels, rows * (height + 1) - 1, columns * (width + 1) - 1), 255, dtype=torch.uint8)
    for n, image in enumerate(images.cpu()):
        top, left = n // columns * (height + 1), n % columns * (width + 1)
        grid[:, top : top + height, left : left + width] = image
    return png(grid)
