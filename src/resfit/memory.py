"""Memory settings of the process: make glibc keep freed memory, use huge pages, and check for free memory.

By default glibc returns every large buffer to the kernel, which zeroes its pages again for the next one; in training
that costs up to a third of the CPU time. Huge pages are requested once for the heap: torch's own option
(THP_MEM_ALLOC_ENABLE) aligns each tensor to a huge page, which fragments the heap until it is 1.5 times as large.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from pathlib import Path

from resfit.errors import BadInput

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


def require_room(what: str, needed: int, free: int | None) -> None:
    """Raise BadInput if `what` needs more bytes of memory than are free; `free` is None if unknown."""
    if free is not None and needed > free:
        raise BadInput(
            f"not enough memory ({what}): {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; "
            "use smaller images (spec.input.size), or a machine with more"
        )


def free_bytes() -> int | None:
    """Return the bytes available to this process: the smaller of the system's and its cgroup's (Linux), or None."""
    bounds = [bound for bound in (_system_free(), _group_free()) if bound is not None]
    return min(bounds, default=None)


def _system_free() -> int | None:
    kibibytes = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    return None if kibibytes is None else 1024 * kibibytes


def _group_free() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no cgroup v2, or no limit
        return None
    return limit - used + _numbers(group / "memory.stat").get("inactive_file", 0)


def _numbers(path: Path) -> dict[str, int]:
    """Parse the lines of a file that start with a name and a whole number."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}
