"""The convolution of resfit's networks: torch's, or a faster kernel where one suits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resfit.kernels import takes
from resfit.kernels.amx_convolution import AmxConvolution
from resfit.kernels.winograd import FEWEST_TILES, WinogradConvolution, tiles


class Conv2d(nn.Conv2d):
    """nn.Conv2d that within `fast_kernels()`, under bf16 autocast on a CPU, takes the kernel that suits its shape."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        out: Tensor
        if self._takes_amx(images):
            out = AmxConvolution.apply(images.bfloat16(), self.weight, self.stride[0])
        elif self._takes_winograd(images):
            out = WinogradConvolution.apply(images.bfloat16(), self.weight)
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
        suits = self.kernel_size == (3, 3) and self.stride == self.padding == (1, 1) and self._is_plain(16, 1.0)
        return suits and min(self.in_channels, self.out_channels) >= 32 and tiles(images) >= FEWEST_TILES

    def _takes(self, kernel: str, images: Tensor) -> bool:
        """Asked first: torch.compile knows that no kernel is taken, and need not follow the rest."""
        return takes(kernel, images) and images.shape[1] == self.in_channels

    def _is_plain(self, block: int, share: float) -> bool:
        """Whether channels fill such a share of the kernel's blocks of them, and nothing is out of the ordinary."""
        counts = (self.in_channels, self.out_channels)
        filled = math.prod(count / (-(-count // block) * block) for count in counts)
        return filled >= share and self.groups == 1 and self.dilation == (1, 1) and self.weight.dtype == torch.float32
