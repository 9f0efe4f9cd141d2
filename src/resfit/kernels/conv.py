"""The convolution of resfit's networks: torch's, or a faster kernel where one suits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resfit.kernels import takes
from resfit.kernels.filter_gradient import AmxConvolution
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
        size, stride = self.kernel_size[0], self.stride[0]
        keeps_size = self.kernel_size == (size, size) and size % 2 == 1 and self.padding == (size // 2, size // 2)
        suits = keeps_size and self.stride == (stride, stride) and self._is_plain(32)
        return takes("filter_gradient", images) and suits and torch.is_grad_enabled()

    def _takes_winograd(self, images: Tensor) -> bool:
        suits = self.kernel_size == (3, 3) and self.stride == self.padding == (1, 1) and self._is_plain(16)
        return takes("winograd", images) and suits and tiles(images) >= FEWEST_TILES

    def _is_plain(self, multiple: int) -> bool:
        """Whether inputs and outputs are both multiples of so many, at least 32, and nothing is out of the ordinary."""
        counts = (self.in_channels, self.out_channels)
        fills = min(counts) >= 32 and all(count % multiple == 0 for count in counts)
        return fills and self.groups == 1 and self.dilation == (1, 1) and self.weight.dtype == torch.float32
