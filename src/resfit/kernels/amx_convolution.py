"""Convolutions by AMX, and their gradients, with tiles that images share.

torch's take a tile's rows from a map's neighbours, so that a map of 4x4 pixels fills a quarter of it, and multiply its
padding too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from resfit.kernels.library import call

_convolution_backward = torch.ops.aten.convolution_backward


class AmxConvolution(torch.autograd.Function):
    """A convolution with odd square filters and padding that keeps the size.

    images bf16 [N, C, H, W] and filters float [K, C, k, k] -> bf16 [N, K, H', W'], channels_last; H' is H / stride,
    rounded up. Sums are fp32; the gradient of the filters is returned in it.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor, stride: int) -> Tensor:
        """The convolution."""
        images = images.contiguous(memory_format=torch.channels_last)
        rounded = filters.to(torch.bfloat16, memory_format=torch.channels_last)
        ctx.save_for_backward(images, filters, rounded)
        ctx.stride = stride
        if filters.shape[-1] == 1:  # nothing to be laid out: torch's are faster
            return F.conv2d(images, rounded, stride=stride)
        height, width = (-(-side // stride) for side in images.shape[2:])
        maps = _channels_last(len(images), len(filters), height, width)
        call("amx_convolution", "convolve", images, rounded, maps, *_sizes(images, filters), stride, 0)
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The gradients of images and filters, where they are wanted."""
        images, filters, rounded = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        sizes = (*_sizes(images, filters), ctx.stride)
        of_images = of_filters = None
        # torch's are faster where nothing is to be laid out, but for the zeros between what a stride leaves out.
        if ctx.needs_input_grad[0] and (filters.shape[-1] > 1 or ctx.stride > 1):
            of_images = _channels_last(*images.shape)
            call("amx_convolution", "convolve", gradient, rounded, of_images, *sizes, 1)
        elif ctx.needs_input_grad[0]:
            geometry = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
            of_images = _convolution_backward(gradient, images, rounded, *geometry, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            of_filters = torch.empty_like(filters)
            call("amx_convolution", "filter_gradient", images, gradient, of_filters, *of_filters.stride(), *sizes)
        return of_images, of_filters, None


def _channels_last(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


def _sizes(images: Tensor, filters: Tensor) -> tuple[int, ...]:
    n, channels, height, width = images.shape
    return n, height, width, channels, len(filters), filters.shape[-1]
