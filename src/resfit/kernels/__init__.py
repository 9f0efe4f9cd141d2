"""CPU kernels, faster than torch's, for bf16 training with AVX-512: C++ files and their autograd functions.

The system's C++ compiler compiles them once into shared libraries. Without a compiler, or on other processors, torch's
own operators are used. RESFIT_KERNELS=0 disables the kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from resfit.kernels.library import load_library
from resfit.machine import processor

# For each kernel: the CPU feature it needs, and a feature with which torch is faster, so that the kernel is not used.
NEEDS = {
    "winograd": ("avx512_bf16", "amx_bf16"),
    "amx_convolution": ("amx_bf16", None),
    "norm": ("avx512_bf16", None),
    "gate": ("avx512_bf16", None),
    "pool": ("avx512_bf16", None),
}

_in_use: ContextVar[tuple[str, ...]] = ContextVar("kernels in use", default=())  # per thread


@contextmanager
def fast_kernels() -> Iterator[None]:
    """Within the block, resfit's networks use the kernels that suit the processor and can be compiled."""
    before = _in_use.set(tuple(sorted(name for name in suited() if load_library(name) is not None)))
    try:
        yield
    finally:
        _in_use.reset(before)


def in_use() -> tuple[str, ...]:
    """Return the names of the kernels in use."""
    return _in_use.get()


def suited() -> tuple[str, ...]:
    """Return the kernels that are faster than torch on this processor; empty if RESFIT_KERNELS=0."""
    if os.environ.get("RESFIT_KERNELS") == "0":
        return ()
    features = processor()[1]
    return tuple(name for name, (needed, better) in NEEDS.items() if needed in features and better not in features)


def takes(kernel: str, images: Tensor) -> bool:
    """Return whether the kernel is in use and `images` is a non-empty CPU tensor [N, C, H, W] under bf16 autocast."""
    return (
        not torch.compiler.is_compiling()
        and kernel in in_use()
        and images.device.type == "cpu"
        and images.dim() == 4
        and images.numel() > 0
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
