"""Asks the C library to keep freed memory: large tensors are then reused instead of being zeroed page by page again.

By default glibc returns every large buffer to the kernel; in training that costs up to a third of the processor time.
"""

from __future__ import annotations

import ctypes
import os
import sys

# The options' numbers in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 256 * 2**20


def keep_pages() -> bool:
    """Tell malloc to keep its pages, and torch to ask for huge ones; True where the C library took it.

    Takes full effect only ahead of torch's first allocation. Does nothing outside Linux with glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    taken = [mallopt(option, value) == 1 for option, value in settings]
    return all(taken)
