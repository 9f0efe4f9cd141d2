"""What the processor is and can do, as the system tells."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

# Instruction sets that decide how fast a network trains on a CPU.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


@functools.cache
def processor() -> tuple[str, tuple[str, ...]]:
    """The processor's name, and those of its features that matter here; none are known outside Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    pairs = (line.partition(":") for line in lines)
    known = {key.strip(): value.strip() for key, _, value in pairs}
    flags = known.get("flags", "").split()
    return known.get("model name", platform.machine()), tuple(name for name in _FEATURES if name in flags)
