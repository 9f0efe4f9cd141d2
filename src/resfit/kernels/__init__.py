"""Faster kernels than torch's for training in bf16 on CPUs with AVX-512: C++ files, each beside its Python face.

The system's C++ compiler makes them into libraries once. Where there is none, or the processor is another, torch's own
operators do the same work. RESFIT_KERNELS=0 turns them off.
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

# What a processor needs for a kernel, and what it must not have because torch is faster then.
NEEDS = {
    "winograd": ("avx512_bf16", "amx_bf16"),
    "amx_convolution": ("amx_bf16", None),
    "norm": ("avx512_bf16", None),
    "gate": ("avx512_bf16", None),
    "pool": ("avx512_bf16", None),
}

_in_use: ContextVar[tuple[str, ...]] = ContextVar("kernels in use", default=())  # each thread has its own


@contextmanager
def fast_kernels() -> Iterator[None]:
    """Within the block, resfit's networks are computed by the kernels that suit the processor and can be compiled."""
    before = _in_use.set(tuple(sorted(name for name in suited() if load_library(name) is not None)))
    try:
        yield
    finally:
        _in_use.reset(before)


def in_use() -> tuple[str, ...]:
    """The kernels that are used at present."""
    return _in_use.get()


def suited() -> tuple[str, ...]:
    """The kernels that are faster than torch on this processor, unless they are turned off."""
    if os.environ.get("RESFIT_KERNELS") == "0":
        return ()
    features = processor()[1]
    return tuple(name for name, (needed, better) in NEEDS.items() if needed in features and better not in features)


def takes(kernel: str, images: Tensor) -> bool:
    """Whether the kernel is in use, and there are images [N, C, H, W] on the CPU that are computed with in bf16."""
    return (
        not torch.compiler.is_compiling()
        and kernel in in_use()
        and images.device.type == "cpu"
        and images.dim() == 4
        and images.numel() > 0
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
