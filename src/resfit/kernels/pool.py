"""2 x 2 max-pooling that saves one byte per output for backward, where torch saves a 64-bit index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resfit.kernels import takes
from resfit.kernels.library import call, channels_last


class MaxPool2x2(torch.autograd.Function):
    """2 x 2 max-pooling with stride 2: bf16 or float [N, C, H, W] -> [N, C, H // 2, W // 2], channels_last.

    C must be a multiple of 16. The first of equal pixels gets the gradient, as in torch.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        """Return the maximum of every 2 x 2 pixels."""
        images = channels_last(images)
        n, channels, height, width = ctx.shape = images.shape
        out = _empty((n, channels, height // 2, width // 2), images.dtype)
        which = torch.empty_like(out, dtype=torch.uint8)
        call("pool", images.dtype, "pool", images, out, which, n, height, width, channels)
        ctx.save_for_backward(which)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Route each gradient to the pixel that was the maximum."""
        which, gradient = channels_last(*ctx.saved_tensors), channels_last(gradient)
        n, channels, height, width = ctx.shape
        of_images = _empty(ctx.shape, gradient.dtype)
        call("pool", gradient.dtype, "pool_backward", gradient, which, of_images, n, height, width, channels)
        return of_images


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)


class MaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d that uses the 2 x 2 kernel within `fast_kernels()`, on a CPU."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H', W']."""
        if takes("pool", images) and self._suits(images):
            out: Tensor = MaxPool2x2.apply(images)
            return out
        pooled: Tensor = super().forward(images)
        return pooled

    def _suits(self, images: Tensor) -> bool:
        halves = self.kernel_size == self.stride == 2 and self.dilation == 1
        plain = not (self.padding or self.ceil_mode or self.return_indices)
        return halves and plain and images.shape[1] % 16 == 0 and min(images.shape[2:]) >= 2
