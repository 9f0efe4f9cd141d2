"""Runs a peer's training script, unmodified, on a CPU: python benchmarks/peer_shim.py SCRIPT

Scripts of this kind ask for CUDA and half precision. Here CUDA's calls are stood in for by the CPU's: devices, timers,
synchronization. Half precision is bf16, as CPUs have no fast fp16, and compilation is left out. All else is the
script's own. A script whose first run only warms up gets few images for it: on a CPU there is little to warm.
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

WARM_UP_IMAGES = 2000

_MAKERS = ("arange", "empty", "eye", "full", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros")


class WallClockEvent:
    """torch.cuda.Event's timing, by the wall clock."""

    def __init__(self, enable_timing: bool = False, **options: Any) -> None:
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        """Take the time."""
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """A CPU has no work outstanding."""

    def elapsed_time(self, end: WallClockEvent) -> float:
        """Milliseconds from this event to `end`."""
        return 1e3 * (end.seconds - self.seconds)


class _DeviceType(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _REAL_DEVICE)


_REAL_DEVICE = torch.device


class CPUDevice(metaclass=_DeviceType):
    """Stands in for torch.device, whatever is asked for."""

    def __new__(cls, *wanted: Any, **options: Any) -> Any:
        """The CPU."""
        return _REAL_DEVICE("cpu")


def stand_in(warm_up_runs: int = 0) -> None:
    """Replace what needs a GPU in torch, for the rest of this process.

    In the first `warm_up_runs` runs, torch.load hands back WARM_UP_IMAGES images of each part at the most; a run is
    taken to load a training part and a test part.
    """
    torch.cuda.Event = WallClockEvent  # type: ignore[misc,assignment]
    for name in ("synchronize", "empty_cache", "_sleep"):
        setattr(torch.cuda, name, lambda *arguments, **options: None)
    torch.device = CPUDevice  # type: ignore[misc,assignment]
    torch.half = torch.bfloat16
    for kind in (torch.Tensor, nn.Module):
        kind.cuda = lambda self, *arguments, **options: self  # type: ignore[method-assign]
        kind.half = kind.bfloat16  # type: ignore[method-assign]
        kind.to = _on_cpu(kind.to)  # type: ignore[method-assign]
    for name in _MAKERS:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.compile = _not_compiled  # type: ignore[assignment]
    nn.Module.compile = lambda self, *arguments, **options: None  # type: ignore[method-assign]
    torch.load = _load(torch.load, 2 * warm_up_runs)


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every device that it is given replaced by the CPU."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        if "device" in options:
            options["device"] = "cpu"
        return function(*("cpu" if _is_cuda(value) else value for value in arguments), **options)

    return called


def _is_cuda(value: object) -> bool:
    return isinstance(value, str) and value.startswith("cuda")


def _not_compiled(model: Any = None, **options: Any) -> Any:
    """torch.compile as a function and as a decorator, with or without options; gives back what it was given."""
    if model is None:
        return lambda function: function
    if isinstance(model, nn.Module):  # a compiled module tells its original, which is no submodule of itself
        object.__setattr__(model, "_orig_mod", model)
    return model


def _load(real: Callable[..., Any], short: int) -> Callable[..., Any]:
    left = short

    def load(file: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal left
        torch.half = torch.float16  # torch's reader goes by it
        data = real(file, map_location="cpu", weights_only=True)
        torch.half = torch.bfloat16
        left -= 1
        if left < 0:
            return data
        return {**data, **{part: data[part][:WARM_UP_IMAGES] for part in ("images", "labels")}}

    return load


def warm_up_runs(code: str) -> int:
    """How many runs a script makes that only warm up."""
    return len(re.findall(r"""^\s*main\(["']warmup["']""", code, re.MULTILINE))


if __name__ == "__main__":
    script = sys.argv[1]
    stand_in(warm_up_runs(Path(script).read_text()))
    runpy.run_path(script, run_name="__main__")
