"""Channel gates (squeeze-and-excitation) fused with the following addition and activation.

Forward and backward each make one pass over the feature map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resfit.kernels.library import ACTIVATIONS, call, channels_last, read_back, two_readers


class Means(torch.autograd.Function):
    """Return each image's channel means over its pixels, float [N, C], and the feature map itself, for its other uses.

    x: bf16 or float [N, C, H, W], channels_last; C must be a multiple of 16. The gradients of both outputs are added in
    one pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means, and x."""
        means = torch.empty(x.shape[:2], dtype=torch.float32, device="cpu")
        call("gate", x.dtype, "means", x, means, *_sizes(x))
        return means, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_means: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of x."""
        gradient = channels_last(gradient)
        of_x = torch.empty_like(gradient)
        call("gate", gradient.dtype, "means_backward", gradient, of_means.contiguous(), of_x, *_sizes(gradient))
        return of_x


class GateActivation(torch.autograd.Function):
    """Compute activation(x * gates + added).

    x and added (or None): [N, C, H, W], both bf16 or both float, channels_last; gates: float [N, C]; activation: a name
    or None. Returns the result, of the shape and dtype of x, twice, for two consumers, as NormActivation does. C must
    be a multiple of 16.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, added: Tensor | None, activation: str | None
    ) -> tuple[Tensor, Tensor]:
        """Gate, add, activate."""
        gates, added = gates.contiguous(), channels_last(added)
        out = torch.empty_like(x)
        call("gate", x.dtype, "forward", x, gates, added, out, ACTIVATIONS[activation], *_sizes(x))
        other = read_back(out, added, activation)
        ctx.save_for_backward(x, gates, other)
        ctx.activation, ctx.adds = activation, added is not None
        ctx.set_materialize_grads(False)
        return out, out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, second: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, gates and added."""
        x, gates, other = ctx.saved_tensors
        x, other = channels_last(x), channels_last(other)
        gradient, second = two_readers(gradient, second)
        if gradient is None:
            return (None,) * 4
        changes = ctx.activation or second is not None
        of_sum = torch.empty_like(x) if ctx.adds and changes else None
        of_x, of_gates = torch.empty_like(x), torch.empty_like(gates)
        operands = (gradient, second, x, gates, other, of_sum, of_x, of_gates)
        call("gate", x.dtype, "backward", *operands, ACTIVATIONS[ctx.activation], *_sizes(x))
        return of_x, of_gates, (of_sum if changes else gradient) if ctx.adds else None, None


def _sizes(x: Tensor) -> tuple[int, int, int]:
    images, channels, height, width = x.shape
    return images, height * width, channels
