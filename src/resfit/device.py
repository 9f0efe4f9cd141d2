"""Choose the device and the numeric precision (fp32, bf16, fp16) of training and evaluation."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from resfit.errors import BadInput
from resfit.machine import processor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """Return the named device; auto is the GPU if there is one. Raise BadInput if the device is not available."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        reason = str(error).splitlines()[0][:80]
        raise BadInput(f"device not available, {reason} (device {wanted}): give auto, cpu or cuda") from None
    return device


def spread(device: str, workers: int | None) -> list[str]:
    """Return a device per worker. With auto, they share all GPUs in turn; by default, one worker per device."""
    gpus = torch.cuda.device_count() if device == "auto" else 0
    devices = [f"cuda:{n}" for n in range(gpus)] or [device]
    return [devices[n % len(devices)] for n in range(workers or len(devices))]


def usable_precision(wanted: str, device: torch.device) -> str:
    """Resolve "auto" to bf16 if the device has instructions for it or is clearly faster in it, else to fp32.

    Any other precision is returned unchanged.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if "avx2" in processor()[1]:  # the features are known: no need for a timing, which other load could distort
        return "bf16" if "avx512_bf16" in processor()[1] else "fp32"
    return "bf16" if _conv_seconds(torch.bfloat16) < 0.8 * _conv_seconds(torch.float32) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return an autocast context in which `device` computes in the given precision."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def _conv_seconds(dtype: torch.dtype) -> float:
    """Return the best of three timings of a small convolution on the CPU, after a warm-up."""
    images = torch.ones(32, 64, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    filters = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.no_grad():
        for _ in range(4):
            started = time.perf_counter()
            F.conv2d(images, filters, padding=1)
            times.append(time.perf_counter() - started)
    return min(times[1:])
