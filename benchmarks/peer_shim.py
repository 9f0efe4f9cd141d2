"""Run a peer's training script, unmodified, on a CPU: python benchmarks/peer_shim.py SCRIPT

Such scripts require CUDA and half precision. Here CUDA calls are replaced by CPU equivalents: devices, timers,
synchronization. Half precision becomes bf16, as CPUs have no fast fp16, and fp32 (their own bf16 as well) on a CPU that
has no instructions for bf16 either. Compilation is skipped. Everything else is the script's own. If a script's first
run is only a warm-up, it gets few images: on a CPU there is little to warm up.
"""

from __future__ import annotations

import functools
import re
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resfit.device import DTYPES, usable_precision

WARM_UP_IMAGES = 2000

_MAKERS = ("arange", "empty", "eye", "full", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros")


class WallClockEvent:
    """A replacement of torch.cuda.Event that measures wall-clock time."""

    def __init__(self, enable_timing: bool = False, **options: Any) -> None:
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        """Record the time."""
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """Do nothing: a CPU has no outstanding work."""

    def elapsed_time(self, end: WallClockEvent) -> float:
        """Return the milliseconds from this event to `end`."""
        return 1e3 * (end.seconds - self.seconds)


class _DeviceType(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _REAL_DEVICE)


_REAL_DEVICE = torch.device


class CPUDevice(metaclass=_DeviceType):
    """A replacement of torch.device that always returns the CPU."""

    def __new__(cls, *wanted: Any, **options: Any) -> Any:
        """Return the CPU device."""
        return _REAL_DEVICE("cpu")


def stand_in(warm_up_runs: int = 0) -> None:
    """Replace the parts of torch that need a GPU, for the rest of this process.

    In the first `warm_up_runs` runs, torch.load returns at most WARM_UP_IMAGES images of each part; each run is assumed
    to load a training part and a test part.
    """
    torch.cuda.Event = WallClockEvent  # type: ignore[misc,assignment]
    for name in ("synchronize", "empty_cache", "_sleep"):
        setattr(torch.cuda, name, lambda *arguments, **options: None)
    half = DTYPES[usable_precision("auto", torch.device("cpu"))]
    torch.device = CPUDevice  # type: ignore[misc,assignment]
    torch.half = half
    for kind in (torch.Tensor, nn.Module):
        kind.cuda = lambda self, *arguments, **options: self  # type: ignore[method-assign]
        kind.half = kind.bfloat16 if half == torch.bfloat16 else kind.float  # type: ignore[method-assign]
        kind.bfloat16 = kind.half  # type: ignore[method-assign]
        kind.to = _on_cpu(kind.to)  # type: ignore[method-assign]
    for name in _MAKERS:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.compile = _not_compiled  # type: ignore[assignment]
    nn.Module.compile = lambda self, *arguments, **options: None  # type: ignore[method-assign]
    torch.load = _load(torch.load, half, 2 * warm_up_runs)


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that any device passed to it is replaced by the CPU."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        if "device" in options:
            options["device"] = "cpu"
        return function(*("cpu" if _is_cuda(value) else value for value in arguments), **options)

    return called


def _is_cuda(value: object) -> bool:
    return isinstance(value, str) and value.startswith("cuda")


def _not_compiled(model: Any = None, **options: Any) -> Any:
    """Replace torch.compile, as a function or decorator, with or without options, by the identity."""
    if model is None:
        return lambda function: function
    if isinstance(model, nn.Module):  # a compiled module has `_orig_mod`, which must not become its own submodule
        object.__setattr__(model, "_orig_mod", model)
    return model


def _load(real: Callable[..., Any], half: torch.dtype, short: int) -> Callable[..., Any]:
    left = short

    def load(file: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal left
        torch.half = torch.float16  # torch.load relies on it
        data = real(file, map_location="cpu", weights_only=True)
        torch.half = half
        left -= 1
        if left < 0:
            return data
        return {**data, **{part: data[part][:WARM_UP_IMAGES] for part in ("images", "labels")}}

    return load


def warm_up_runs(code: str) -> int:
    """Return how many warm-up runs a script makes."""
    return len(re.findall(r"""^\s*main\(["']warmup["']""", code, re.MULTILINE))


if __name__ == "__main__":
    script = sys.argv[1]
    stand_in(warm_up_runs(Path(script).read_text()))
    runpy.run_path(script, run_name="__main__")
