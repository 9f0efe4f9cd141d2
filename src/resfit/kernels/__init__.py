"""CPU kernels, faster than torch's, for training in bf16 or fp32: C++ files and their autograd functions.

The system's C++ compiler compiles them once into shared libraries. Without a compiler, or on other processors, torch's
own operators are used. RESFIT_KERNELS=0 disables the kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import Parameter

from resfit.kernels.library import LIBRARIES, load_library, variant
from resfit.machine import cpu_flags

# The libraries in use for each dtype that was asked for within the block; None outside of one. Per thread.
_in_use: ContextVar[dict[torch.dtype, tuple[str, ...]] | None] = ContextVar("kernels in use", default=None)


@contextmanager
def fast_kernels() -> Iterator[None]:
    """Within the block, resfit's networks use the kernels that suit the processor and can be compiled.

    A backward pass may come later, but what recomputes a forward pass, as checkpointing does, has to be within.
    """
    before = _in_use.set({})
    try:
        yield
    finally:
        _in_use.reset(before)


def in_use(dtype: torch.dtype) -> tuple[str, ...]:
    """Return the libraries in use where networks compute in `dtype`; the first call compiles those that are new."""
    known = _in_use.get()
    if known is None:
        return ()
    if dtype not in known:
        names = suited(dtype)
        with ThreadPoolExecutor() as pool:  # a compiler each
            known[dtype] = tuple(
                name for name, found in zip(names, pool.map(load_library, names), strict=True) if found
            )
    return known[dtype]


def suited(dtype: torch.dtype) -> tuple[str, ...]:
    """Return the libraries for `dtype` that are faster than torch on this processor; none if RESFIT_KERNELS=0."""
    if os.environ.get("RESFIT_KERNELS") == "0":
        return ()
    flags = cpu_flags()
    return tuple(
        name
        for name, library in sorted(LIBRARIES.items())
        if library.dtype == dtype and flags.issuperset(library.needs) and library.unless not in flags
    )


def computing_dtype() -> torch.dtype:
    """Return the dtype in which a CPU computes convolutions of fp32 images here: autocast's, or fp32."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def as_computed(images: Tensor) -> Tensor:
    """Return fp32 images on a CPU in the computing dtype, as autocast converts them; others unchanged."""
    converts = not torch.compiler.is_compiling() and images.device.type == "cpu" and images.dtype == torch.float32
    return images.to(computing_dtype()) if converts else images


def takes(kernel: str, images: Tensor, *parameters: Tensor) -> bool:
    """Return whether the kernel is in use for `images`, a non-empty CPU tensor [N, C, H, W] of the computing dtype.

    The layer's parameters have to be fp32 on the CPU: kernels read their memory as such.
    """
    return (
        not (torch.compiler.is_compiling() or _observed())
        and type(images) is Tensor
        and images.device.type == "cpu"
        and images.dim() == 4
        and images.numel() > 0
        and images.dtype == computing_dtype()
        and variant(kernel, images.dtype) in in_use(images.dtype)
        and all(one.device.type == "cpu" and one.dtype == torch.float32 for one in parameters)
        and all(type(one) in (Tensor, Parameter) for one in parameters)
    )


def _observed() -> bool:
    """Return whether torch traces or transforms what is computed: it would not see what a kernel does."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    transforms = torch._C._functorch.peek_interpreter_stack() is not None
    return tracing or transforms or torch._C._len_torch_dispatch_stack() > 0
