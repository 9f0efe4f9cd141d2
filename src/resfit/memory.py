"""Asks the C library to keep freed memory: large tensors are then reused instead of being zeroed page by page again.

By default glibc returns every large buffer to the kernel; in training that costs up to a third of the processor time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from resfit.errors import BadInput

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


def require_room(what: str, needed: int, free: int | None) -> None:
    """Raise BadInput where `what` needs more bytes of memory than are free; None means that nobody knows."""
    if free is not None and needed > free:
        raise BadInput(
            f"not enough memory ({what}): {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; "
            "use smaller images (spec.input.size), or a machine with more"
        )


def free_bytes() -> int | None:
    """Memory that this process may still take: the system's, or its control group's where that is less (Linux)."""
    bounds = [bound for bound in (_system_free(), _group_free()) if bound is not None]
    return min(bounds, default=None)


def _system_free() -> int | None:
    kibibytes = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    return None if kibibytes is None else 1024 * kibibytes


def _group_free() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or one without a limit
        return None
    return limit - used + _numbers(group / "memory.stat").get("inactive_file", 0)


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file that begin with a name and a whole number."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}
