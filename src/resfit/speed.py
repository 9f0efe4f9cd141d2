"""How fast a network is on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from resfit.environment import pick_device
from resfit.net import build
from resfit.run import fast_process
from resfit.spec import NetSpec
from resfit.train import usable_precision

_SECONDS = 0.5  # that a measurement repeats for, at least
_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Speed:
    """`latency_ms` of one image's forward pass; `images_per_second` trained, forward and backward of whole batches."""

    latency_ms: float
    images_per_second: float


@fast_process()
def measure(spec: NetSpec, *, device: str = "auto", batch_size: int = 128) -> Speed:
    """Time the network of `spec` in the precision that training would take: medians after a warm-up."""
    where = pick_device(device)
    bf16 = usable_precision("auto", where) == "bf16"
    net = build(spec).to(where)
    shape = (spec.input.channels, spec.input.size, spec.input.size)
    images = torch.randn(batch_size, *shape, device=where).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.long, device=where)

    def train_step() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()

    @torch.no_grad()
    def score_one() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            net(images[:1])

    trained = batch_size / _median_seconds(train_step, where)
    net.eval()
    return Speed(latency_ms=1000 * _median_seconds(score_one, where), images_per_second=trained)


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    """The median time of `work`, after running it twice."""
    work()
    work()
    times: list[float] = []
    while len(times) < _REPEATS or sum(times) < _SECONDS:
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
