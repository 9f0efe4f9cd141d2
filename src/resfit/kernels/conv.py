"""Conv2d for resfit's networks: torch's convolution, or a faster kernel if one suits."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from resfit.kernels import as_computed, takes
from resfit.kernels.amx_convolution import AmxConvolution
from resfit.kernels.library import lanes
from resfit.kernels.winograd import METHODS, WinogradConvolution

_MOST_FILTERS = 2**20  # Winograd's transforms of 3x3 filters and of their gradients take up to 36 floats for each


class Conv2d(nn.Conv2d):
    """nn.Conv2d that uses the kernel suited to its shape and precision within `fast_kernels()`, on a CPU."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        out: Tensor
        images = as_computed(images)
        if self._takes_amx(images):
            out = AmxConvolution.apply(images, self.weight, self.stride[0])
        elif self._takes_winograd(images):
            out = WinogradConvolution.apply(images, self.weight)
        elif self._picks_pixels(images):
            return F.conv2d(images[..., :: self.stride[0], :: self.stride[1]], self.weight, self.bias)
        else:
            return super().forward(images)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _takes_amx(self, images: Tensor) -> bool:
        if not self._takes("amx_convolution", images):
            return False
        size, stride = self.kernel_size[0], self.stride[0]
        keeps_size = self.kernel_size == (size, size) and size % 2 == 1 and self.padding == (size // 2, size // 2)
        return keeps_size and self.stride == (stride, stride) and self._is_plain(32, 0.6)

    def _takes_winograd(self, images: Tensor) -> bool:
        if not self._takes("winograd", images):
            return False
        suits = self.kernel_size == (3, 3) and self.stride == self.padding == (1, 1)
        suits = suits and self._is_plain(lanes(images.dtype), 1.0)
        method = METHODS[images.dtype]
        fewest, most = sorted((self.in_channels, self.out_channels))
        pays = fewest >= method.fewest_channels and fewest * most <= _MOST_FILTERS
        return suits and pays and method.tiles(images) >= method.fewest_tiles

    def _picks_pixels(self, images: Tensor) -> bool:
        """Return whether to convolve only the pixels that the stride leaves: with 1x1 filters of few channels.

        The CPU library of torch writes past its memory in their gradient, which is wrong then, or never comes
        (uxlfoundation/oneDNN, issue 6035: fewer than 8 input channels with AVX2, 16 with AVX-512).
        """
        alike = self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1 and max(self.stride) > 1
        return alike and self.in_channels < 16 and images.device.type == "cpu"

    def _takes(self, kernel: str, images: Tensor) -> bool:
        """Return whether `kernel` may be used; called first, so that torch.compile need not trace the other checks."""
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        return takes(kernel, images, self.weight) and images.shape[1] == self.in_channels and self.weight.shape == shape

    def _is_plain(self, block: int, share: float) -> bool:
        """Return whether channels fill `share` of their blocks, without groups, dilation or padding but zeros."""
        counts = (self.in_channels, self.out_channels)
        filled = math.prod(count / (-(-count // block) * block) for count in counts)
        return filled >= share and self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
