"""Batch normalization fused with the following addition and activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from resfit.kernels.library import ACTIVATIONS, call, channels_last, read_back, two_readers

GROUP = 64  # block size of a standalone activation


class NormActivation(torch.autograd.Function):
    """Compute activation(batch_norm(x) + added), with batch statistics of x.

    x and added (or None): [N, C, H, W], both bf16 or both float; weight and bias: float [C]; activation: a name or
    None. Returns the result, same shape and dtype, channels_last, twice, and the mean and the biased variance, float
    [C]. C must be a multiple of 16.

    Both results share memory. If two layers consume one each, their gradients arrive separately and are added in the
    backward kernel's pass over them instead of in a pass of their own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, activation: str | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalize, add, activate."""
        x, added = channels_last(x), channels_last(added)  # backward reads it as well
        mean, variance = torch.empty_like(bias), torch.empty_like(bias)
        call("norm", x.dtype, "moments", x, mean, variance, *_sizes(x))
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        shift = bias - mean * scale
        out = normalized(x, scale, shift, added, activation)
        other = read_back(out, added, activation)
        ctx.save_for_backward(x, other, mean, inverse, scale, shift)
        ctx.activation, ctx.adds = activation, added is not None
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return out, out.detach(), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, second: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias and added."""
        x, other, mean, inverse, scale, shift = ctx.saved_tensors
        x, other = channels_last(x), channels_last(other)
        gradient, second = two_readers(gradient, second)
        if gradient is None:
            return (None,) * 6
        # For a ReLU alone, the gradient of its input is recomputed from x: cheaper than writing it and reading it back.
        again = ctx.activation == "relu" and second is None and not ctx.adds
        changes = (ctx.activation or second is not None) and not again
        of_sum = torch.empty_like(x) if changes else None
        plain, with_normalized = torch.empty_like(mean), torch.empty_like(mean)
        operands = (gradient, second, x, other, scale, shift, mean, inverse, of_sum, plain, with_normalized)
        call("norm", x.dtype, "backward_sums", *operands, ACTIVATIONS[ctx.activation], *_sizes(x))
        pixels = x.numel() // x.shape[1]
        b = -scale * inverse * with_normalized / pixels
        c = -scale * plain / pixels - b * mean
        of_sum = gradient if of_sum is None else of_sum
        of_x = torch.empty_like(x) if ctx.adds or of_sum is gradient else of_sum
        call("norm", x.dtype, "backward", of_sum, x, scale, shift if again else None, b, c, of_x, *_sizes(x))
        of_weight = with_normalized if ctx.needs_input_grad[1] else None
        return of_x, of_weight, plain, of_sum if ctx.adds else None, None, None


class Activation(torch.autograd.Function):
    """An activation by name, alone: bf16 or float [N, C, H, W] -> same, channels_last; a multiple of 64 elements."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str) -> Tensor:
        """Activate."""
        x = channels_last(x)
        ones, zeros = _vectors(1, 0)
        out = torch.empty_like(x)
        call("norm", x.dtype, "forward", x, None, ones, zeros, out, ACTIVATIONS[activation], x.numel() // GROUP, GROUP)
        ctx.save_for_backward(x)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x, computed by the norm's backward kernel with scale 1, whose sums are discarded."""
        x, gradient = channels_last(*ctx.saved_tensors), channels_last(gradient)
        ones, zeros, *sums = _vectors(1, 0, 0, 0)
        of_x = torch.empty_like(x)
        operands = (gradient, None, x, None, ones, zeros, zeros, ones, of_x, *sums)
        call("norm", x.dtype, "backward_sums", *operands, ACTIVATIONS[ctx.activation], x.numel() // GROUP, GROUP)
        return of_x, None


def normalized(x: Tensor, scale: Tensor, shift: Tensor, added: Tensor | None, activation: str | None) -> Tensor:
    """Return activation(x * scale + shift + added): [N, C, H, W], channels_last; scale and shift float [C]."""
    added, out = channels_last(added), torch.empty_like(x)
    call("norm", x.dtype, "forward", x, added, scale, shift, out, ACTIVATIONS[activation], *_sizes(x))
    return out


def _vectors(*values: float) -> list[Tensor]:
    return [torch.full((GROUP,), value, dtype=torch.float32, device="cpu") for value in values]


def _sizes(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]
