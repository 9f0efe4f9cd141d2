"""Convolutions with AMX, and their gradients, with tiles shared between images.

torch's kernels fill a tile's rows with neighbouring pixels of one feature map, so that a map of 4 x 4 pixels fills only
a quarter of a tile, and they also multiply the padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from resfit.kernels.library import call, channels_last

_convolution_backward = torch.ops.aten.convolution_backward


class AmxConvolution(torch.autograd.Function):
    """A convolution with odd square filters and padding that preserves the size (before the stride).

    images bf16 [N, C, H, W] and filters float [K, C, k, k] -> bf16 [N, K, H', W'], channels_last; H' is H / stride,
    rounded up, W' likewise. Accumulates in fp32; the gradient of the filters is fp32.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor, stride: int) -> Tensor:
        """Compute the convolution."""
        images = channels_last(images)
        rounded = filters.to(torch.bfloat16, memory_format=torch.channels_last)
        ctx.save_for_backward(images, filters, rounded)
        ctx.stride = stride
        if filters.shape[-1] == 1:  # 1 x 1 filters need no layout conversion: torch is faster
            return F.conv2d(images, rounded, stride=stride)
        height, width = (-(-side // stride) for side in images.shape[2:])
        maps = _empty(len(images), len(filters), height, width)
        call("amx_convolution", torch.bfloat16, "convolve", images, rounded, maps, *_sizes(images, filters), stride, 0)
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of images and filters, where needed."""
        images, filters, rounded = ctx.saved_tensors
        images, rounded, gradient = map(channels_last, (images, rounded, gradient))
        sizes = (*_sizes(images, filters), ctx.stride)
        of_images = of_filters = None
        # torch is faster where no layout conversion is needed, except with strides, where it multiplies inserted zeros.
        if ctx.needs_input_grad[0] and (filters.shape[-1] > 1 or ctx.stride > 1):
            of_images = _empty(*images.shape)
            call("amx_convolution", torch.bfloat16, "convolve", gradient, rounded, of_images, *sizes, 1)
        elif ctx.needs_input_grad[0]:
            geometry = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
            of_images = _convolution_backward(gradient, images, rounded, *geometry, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            of_filters = torch.empty_like(filters)
            call(
                "amx_convolution",
                torch.bfloat16,
                "filter_gradient",
                images,
                gradient,
                of_filters,
                *of_filters.stride(),
                *sizes,
            )
        return of_images, of_filters, None


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cpu", memory_format=torch.channels_last)


def _sizes(images: Tensor, filters: Tensor) -> tuple[int, ...]:
    n, channels, height, width = images.shape
    return n, height, width, channels, len(filters), filters.shape[-1]
