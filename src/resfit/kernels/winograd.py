"""3x3 convolutions by Winograd's method (Lavin and Gray 2016), in bf16 with AVX-512 or in fp32.

In bf16 it is F(2x2, 3x3), with 4 multiplications per output and channel pair instead of 9, but more memory traffic.
With AMX, which multiplies so fast that memory would be the bottleneck, it is not used. In fp32, whose rounding errors
are small enough, it is F(4x4, 3x3), with 2.25 multiplications.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resfit.kernels.library import call, channels_last


@dataclass(frozen=True)
class Method:
    """Rows of output pixels and number of points of a tile; how small a convolution is not worth the transforms."""

    rows: int
    points: int
    fewest_channels: int
    fewest_tiles: int

    def tiles(self, images: Tensor) -> int:
        """Return the number of tiles of images [N, C, H, W]."""
        n, _, height, width = images.shape
        return n * -(-height // self.rows) * -(-width // self.rows)


METHODS = {
    torch.bfloat16: Method(rows=2, points=16, fewest_channels=32, fewest_tiles=128),
    torch.float32: Method(rows=4, points=36, fewest_channels=16, fewest_tiles=32),
}


class WinogradConvolution(torch.autograd.Function):
    """3x3 convolution, stride 1, padding 1.

    images [N, C, H, W], bf16 or float, and filters float [K, C, 3, 3] -> [N, K, H, W] of the images' dtype,
    channels_last. C and K must be multiples of `lanes(dtype)`. In bf16, transformed operands are rounded to it, and
    sums are fp32.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor) -> Tensor:
        """Compute the convolution."""
        images = channels_last(images)
        ctx.save_for_backward(images, filters)
        return _convolve(images, filters, filters.stride(), len(filters))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of images and filters, where needed."""
        images, filters = ctx.saved_tensors
        images, gradient = channels_last(images), channels_last(gradient)
        of_images = of_filters = None
        if ctx.needs_input_grad[0]:  # a convolution with rotated filters, inputs and outputs exchanged
            outputs, inputs, row, column = filters.stride()
            turned = (inputs, outputs, -row, -column)
            of_images = _convolve(gradient, filters[:, :, 2:, 2:], turned, images.shape[1])
        if ctx.needs_input_grad[1]:
            n, channels, height, width = images.shape
            of_filters = torch.empty_like(filters)
            sizes = (n, height, width, channels, len(filters))
            call(
                "winograd", images.dtype, "filter_gradient", images, gradient, of_filters, *of_filters.stride(), *sizes
            )
        return of_images, of_filters


def _convolve(images: Tensor, filters: Tensor, strides: tuple[int, ...], outputs: int) -> Tensor:
    """Convolve with filters given by the address of `filters` and strides over outputs, inputs, rows, columns.

    Negative strides read the filters rotated.
    """
    n, inputs, height, width = images.shape
    dtype = images.dtype
    points = torch.empty(METHODS[dtype].points * inputs * outputs, dtype=dtype, device="cpu")
    call("winograd", dtype, "transform_filters", filters, *strides, points, inputs, outputs)
    shape = (n, outputs, height, width)
    out = torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)
    call("winograd", dtype, "convolve", images, points, out, n, height, width, inputs, outputs)
    return out
