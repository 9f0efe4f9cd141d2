"""Make glibc's malloc keep freed memory and use huge pages.

By default glibc returns every large buffer to the kernel, which zeroes its pages again for the next one; in training
that costs up to a third of the CPU time. Huge pages are requested once for the heap: torch's own option
(THP_MEM_ALLOC_ENABLE) aligns each tensor to a huge page, which fragments the heap until it is 1.5 times as large.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys

from resfit.machine import free_bytes

# Option numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 256 * 2**20
_ADVISED_BYTES = 4 * 2**30
_MADV_HUGEPAGE = 14  # from Linux's mman.h


@functools.cache
def keep_pages() -> bool:
    """Make malloc keep freed pages and request huge pages for the heap; return whether malloc accepted the options.

    Earlier allocations are not affected. Does nothing outside Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    taken = [mallopt(option, value) == 1 for option, value in settings]
    if all(taken):
        _advise_huge_pages(libc, min(free_bytes() or 0, _ADVISED_BYTES))
    return all(taken)


def _advise_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Request huge pages for the next `size` bytes of the heap; they take no memory until they are used."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    begin = libc.malloc(size)
    if begin:
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(first, begin + size - first, _MADV_HUGEPAGE)
        libc.free(begin)  # the heap does not shrink again
