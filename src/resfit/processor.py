"""The CPU's model name and the instruction sets that affect training speed, from /proc/cpuinfo."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

# Instruction sets that determine how fast a network trains on a CPU.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


@functools.cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Return the CPU's name and its flags among `_FEATURES`; outside Linux the flags are empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    pairs = (line.partition(":") for line in lines)
    known = {key.strip(): value.strip() for key, _, value in pairs}
    flags = known.get("flags", "").split()
    return known.get("model name", platform.machine()), tuple(name for name in _FEATURES if name in flags)
