"""Process-wide speed settings: keep freed memory, flush denormals to zero, use the fastest kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resfit import kernels
from resfit.malloc import keep_pages


@contextmanager
def fast_process() -> Iterator[None]:
    """Keep freed memory, and within the block flush denormals to zero and use the suitable kernels.

    On a GPU, cuDNN benchmarks its algorithms for each new convolution shape and keeps the fastest.

    Denormal gradients make a convolution on a CPU up to forty times slower. torch's worker threads inherit the setting
    from the thread that starts them, so enter this block before creating the first tensor.
    """
    keep_pages()
    before, tried = _flushes_denormals(), torch.backends.cudnn.benchmark
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = True
    try:
        with kernels.fast_kernels():
            yield
    finally:
        torch.set_flush_denormal(before)
        torch.backends.cudnn.benchmark = tried


def _flushes_denormals() -> bool:
    """Whether torch currently flushes denormals to zero in this thread."""
    return not (torch.tensor([1e-39], dtype=torch.float32, device="cpu") * 1).item()
