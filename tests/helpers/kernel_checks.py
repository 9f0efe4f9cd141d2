"""What the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resfit import kernels
from resfit.kernels.library import load_library
from resfit.machine import processor

ROUNDING = 0.003  # of a result to bf16; twice where what it is made of was rounded as well

CHANNELS = 80  # a group of 64 and one of 16, which kernels treat apart

Activate = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str | None, Activate] = {None: lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def needs(kernel: str) -> pytest.MarkDecorator:
    """A mark that skips a test where the kernel cannot run: whether it would be faster than torch does not matter."""
    feature, _ = kernels.NEEDS[kernel]
    runs = feature in processor()[1] and load_library(kernel) is not None
    return pytest.mark.skipif(not runs, reason=f"needs {feature} and a C++ compiler")


def difference(found: Tensor, wanted: Tensor) -> float:
    """Of two tensors, relative to the second: the ratio of root mean squares."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def maps(seed: int, shape: tuple[int, ...] = (7, CHANNELS, 9, 11), scale: float = 1, shift: float = 0) -> Tensor:
    """Random maps in bf16, channels_last."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift
    return drawn.bfloat16().contiguous(memory_format=torch.channels_last)


def check_two_readers(out: Tensor, twin: Tensor, given: tuple[Tensor, ...]) -> None:
    """Both are one map of `given`, and the gradients that come to them add up."""
    assert torch.equal(out, twin) and out.data_ptr() == twin.data_ptr()
    first, second = (maps(seed).mul_(4).round_() for seed in (1, 3))  # whose sum bf16 holds exactly
    both = torch.autograd.grad((out, twin), given, (first, second), retain_graph=True)
    for reader in (out, twin):
        alone = torch.autograd.grad(reader, given, first + second, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))
