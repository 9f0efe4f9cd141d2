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
        kernel = self._kernel(images)
        if kernel is None:
            return super().forward(images)
        out: Tensor = kernel.apply(images.bfloat16(), self.weight)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _kernel(self, images: Tensor) -> type[torch.autograd.Function] | None:
        plain = self.kernel_size == (3, 3) and self.stride == self.padding == self.dilation == (1, 1)
        if not (plain and self.groups == 1 and self.weight.dtype == torch.float32):
            return None
        if takes("filter_gradient", images) and self._channels_fill(32) and torch.is_grad_enabled():
            return AmxConvolution
        if takes("winograd", images) and self._channels_fill(16) and tiles(images) >= FEWEST_TILES:
            return WinogradConvolution
        return None

    def _channels_fill(self, multiple: int) -> bool:
        """Whether inputs and outputs are both multiples of so many, and at least 32."""
        counts = (self.in_channels, self.out_channels)
        return min(counts) >= 32 and all(count % multiple == 0 for count in counts)
