"""What the machine has: its processor with the instruction sets that matter, cores, and free memory."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from resfit.errors import BadInput

# Instruction sets that determine how fast a network trains on a CPU.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


@functools.cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Return the CPU's name and its flags among `_FEATURES`; outside Linux the flags are empty."""
    flags = cpu_flags()
    name = _cpu_info().get("model name") or platform.processor() or platform.machine()
    return name, tuple(name for name in _FEATURES if name in flags)


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return all flags of the CPU, as Linux names them; none elsewhere."""
    return frozenset(_cpu_info().get("flags", "").split())


def _cpu_info() -> dict[str, str]:
    """Return the last entry of each key in /proc/cpuinfo; {} if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
