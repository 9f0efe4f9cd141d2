"""Measure the latency of a network: seconds per forward pass, by batch size and number of threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from resfit.record import Latency

_SECONDS = 1.0  # target time per setting
_FEWEST, _MOST = 5, 200  # number of passes per network and setting


@torch.no_grad()
def latencies(
    nets: Sequence[nn.Module], shape: tuple[int, int, int], device: torch.device, batches: Sequence[int] = (1, 64)
) -> list[tuple[Latency, ...]]:
    """Return the median seconds of an fp32 forward pass of each network on images of `shape`, [C, H, W].

    On a CPU, measure with one thread and with all threads. The networks alternate, so that other load on the machine
    affects all of them alike.
    """
    nets = [net.to(device).eval() for net in nets]
    found: list[list[Latency]] = [[] for _ in nets]
    all_threads = torch.get_num_threads()
    for threads in sorted({1, all_threads}) if device.type == "cpu" else [all_threads]:
        with torch_threads(threads):
            for batch in batches:
                images = torch.zeros(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
                for own, times in zip(found, _times(nets, images), strict=True):
                    own.append(
                        Latency(batch=batch, threads=threads, seconds=statistics.median(times), passes=len(times))
                    )
    return [tuple(own) for own in found]


def _times(nets: Sequence[nn.Module], images: Tensor) -> list[list[float]]:
    """Return the seconds of each pass of each network, excluding one warm-up pass."""
    times: list[list[float]] = [[] for _ in nets]
    for net in nets:
        _seconds(net, images)
    started = time.perf_counter()
    while len(times[0]) < _FEWEST or (time.perf_counter() - started < _SECONDS and len(times[0]) < _MOST):
        for net, own in zip(nets, times, strict=True):
            own.append(_seconds(net, images))
    return times


def _seconds(net: nn.Module, images: Tensor) -> float:
    started = time.perf_counter()
    net(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
