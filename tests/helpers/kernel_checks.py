"""What the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resfit.kernels.library import LIBRARIES, load_library, variant
from resfit.machine import cpu_flags

# Of a result: to bf16, twice where what it is made of was rounded as well; in fp32, of the kernels' polynomials.
ROUNDING = {torch.bfloat16: 0.003, torch.float32: 2e-5}

CHANNELS = 80  # a group of 64 and one of 16, which kernels treat apart

Activate = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str | None, Activate] = {None: lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def needs(library: str) -> pytest.MarkDecorator:
    """A mark that skips a test where the library cannot run: whether it would be faster than torch does not matter."""
    features = LIBRARIES[library].needs
    runs = cpu_flags().issuperset(features) and load_library(library) is not None
    return pytest.mark.skipif(not runs, reason=f"needs {features[0]} and a C++ compiler")


def dtypes(kernel: str) -> list[Any]:
    """The dtypes of maps that a kernel is for, as a test's parameters."""
    return [pytest.param(d, marks=needs(variant(kernel, d))) for d in (torch.bfloat16, torch.float32)]


def difference(found: Tensor, wanted: Tensor) -> float:
    """Of two tensors, relative to the second: the ratio of root mean squares."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def maps(
    dtype: torch.dtype, seed: int, shape: tuple[int, ...] = (7, CHANNELS, 9, 11), scale: float = 1, shift: float = 0
) -> Tensor:
    """Random maps, channels_last."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift
    return drawn.to(dtype).contiguous(memory_format=torch.channels_last)


def check_two_readers(out: Tensor, twin: Tensor, given: tuple[Tensor, ...]) -> None:
    """Both are one map of `given`, and the gradients that come to them add up."""
    assert torch.equal(out, twin) and out.data_ptr() == twin.data_ptr()
    first, second = (maps(out.dtype, seed).mul_(4).round_() for seed in (1, 3))  # whose sum bf16 holds exactly
    both = torch.autograd.grad((out, twin), given, (first, second), retain_graph=True)
    for reader in (out, twin):
        alone = torch.autograd.grad(reader, given, first + second, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))
