"""What makes a process compute fast: pages that are kept, denormals that are taken for zero, the fastest kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resfit import kernels
from resfit.memory import keep_pages


@contextmanager
def fast_process() -> Iterator[None]:
    """For speed, keep malloc's pages, and within the block take denormals for zero and use the kernels that suit.

    On a GPU cuDNN tries its algorithms for each new shape of a convolution and keeps the fastest.

    Denormal gradients make a convolution on a CPU up to forty times slower. torch's worker threads take the setting
    over from the thread that starts them, so this belongs ahead of the first tensor.
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
    """Whether torch takes denormals for zero at present, in this thread."""
    return not (torch.tensor([1e-39]) * 1).item()
