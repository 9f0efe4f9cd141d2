"""3x3 convolutions by Winograd's method, for AVX-512 with bf16.

Winograd's F(2x2, 3x3) takes 4 multiplications per output and channel pair instead of 9, but more memory traffic. It is
not used with AMX, which multiplies so fast that memory would be the bottleneck.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resfit.kernels.library import call

POINTS = 16  # per tile of 4 x 4 pixels
FEWEST_TILES = 128  # with fewer, transforming the filters costs more than is saved


def tiles(images: Tensor) -> int:
    """Return the number of tiles of images [N, C, H, W]."""
    n, _, height, width = images.shape
    return n * -(-height // 2) * -(-width // 2)


class WinogradConvolution(torch.autograd.Function):
    """3x3 convolution, stride 1, padding 1 (Lavin and Gray 2016).

    images bf16 [N, C, H, W] and filters float [K, C, 3, 3] -> bf16 [N, K, H, W], channels_last. C and K must be
    multiples of 16; transformed operands are rounded to bf16, and sums are fp32.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor) -> Tensor:
        """Compute the convolution."""
        images = images.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(images, filters)
        return _convolve(images, filters, filters.stride(), len(filters))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of images and filters, where needed."""
        images, filters = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_images = of_filters = None
        if ctx.needs_input_grad[0]:  # a convolution with rotated filters, inputs and outputs exchanged
            outputs, inputs, row, column = filters.stride()
            turned = (inputs, outputs, -row, -column)
            of_images = _convolve(gradient, filters[:, :, 2:, 2:], turned, images.shape[1])
        if ctx.needs_input_grad[1]:
            n, channels, height, width = images.shape
            of_filters = torch.empty_like(filters)
            sizes = (n, height, width, channels, len(filters))
            call("winograd", "filter_gradient", images, gradient, of_filters, *of_filters.stride(), *sizes)
        return of_images, of_filters


def _convolve(images: Tensor, filters: Tensor, strides: tuple[int, ...], outputs: int) -> Tensor:
    """Convolve with filters given by the address of `filters` and strides over outputs, inputs, rows, columns.

    Negative strides read the filters rotated.
    """
    n, inputs, height, width = images.shape
    points = torch.empty(POINTS * inputs * outputs, dtype=torch.bfloat16)
    call("winograd", "transform_filters", filters, *strides, points, inputs, outputs)
    out = torch.empty((n, outputs, height, width), dtype=torch.bfloat16, memory_format=torch.channels_last)
    call("winograd", "convolve", images, points, out, n, height, width, inputs, outputs)
    return out
