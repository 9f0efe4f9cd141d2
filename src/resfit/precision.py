"""The precision that a network is trained and scored in."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from resfit.processor import processor

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def usable_precision(wanted: str, device: torch.device) -> str:
    """The precision to compute in. auto: bf16 where the device has instructions for it, or is clearly faster in it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if "avx2" in processor()[1]:  # all that it can do is known: nothing has to be timed, which other work could disturb
        return "bf16" if "avx512_bf16" in processor()[1] else "fp32"
    return "bf16" if _conv_seconds(torch.bfloat16) < 0.8 * _conv_seconds(torch.float32) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Within its block the device computes in fp32, bf16 or fp16."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def _conv_seconds(dtype: torch.dtype) -> float:
    """Best time of three of a small convolution on the CPU."""
    images = torch.ones(32, 64, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    filters = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.no_grad():
        for _ in range(4):
            started = time.perf_counter()
            F.conv2d(images, filters, padding=1)
            times.append(time.perf_counter() - started)
    return min(times[1:])
