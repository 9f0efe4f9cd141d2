"""Convolutions whose filters' gradient is computed by AMX: torch's takes few of a map's pixels at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from resfit.kernels.library import call, pointer

_convolution_backward = torch.ops.aten.convolution_backward


class AmxConvolution(torch.autograd.Function):
    """torch's convolution with odd square filters and padding that keeps the size, but for the filters' gradient.

    images bf16 [N, C, H, W] and filters float [K, C, k, k] -> bf16 [N, K, H', W'], channels_last; H' is H / stride,
    rounded up. C and K are multiples of 32; the gradient of the filters is summed up and returned in fp32.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor, stride: int) -> Tensor:
        """The convolution."""
        images = images.contiguous(memory_format=torch.channels_last)
        rounded = filters.bfloat16()
        ctx.save_for_backward(images, filters, rounded)
        ctx.stride = stride
        return F.conv2d(images, rounded, stride=stride, padding=filters.shape[-1] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The gradients of images and filters, where they are wanted."""
        images, filters, rounded = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_images = of_filters = None
        if ctx.needs_input_grad[0]:
            padding = filters.shape[-1] // 2
            geometry = (None, [ctx.stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
            of_images = _convolution_backward(gradient, images, rounded, *geometry, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            n, channels, height, width = images.shape
            of_filters = torch.empty_like(filters)
            operands = (pointer(images), pointer(gradient), pointer(of_filters))
            sizes = (n, height, width, channels, len(filters), filters.shape[-1], ctx.stride)
            call("filter_gradient", "filter_gradient", *operands, *of_filters.stride(), *sizes)
        return of_images, of_filters, None
