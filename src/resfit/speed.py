"""Measure a network's inference latency and training throughput on this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from resfit.device import autocast, pick_device, usable_precision
from resfit.fast import fast_process
from resfit.latency import latencies
from resfit.net import build
from resfit.spec import NetSpec

_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Milliseconds of the forward pass of one image in fp32, and training throughput in images per second."""

    latency_ms: float
    images_per_second: float


@fast_process()
def measure(spec: NetSpec, *, device: str = "auto", batch_size: int = 128) -> Speed:
    """Time the network of `spec` with all threads; returns medians that exclude the first, warm-up passes.

    A training step is a forward and a backward pass of one batch in the precision that training would use, without
    augmentation or an optimizer step.
    """
    where = pick_device(device)
    net, shape = build(spec).to(where), (spec.input.channels, spec.input.size, spec.input.size)
    images = torch.randn(batch_size, *shape, device=where).contiguous(memory_format=torch.channels_last)
    precision = usable_precision("auto", where)
    seconds = [_step_seconds(net, images, precision) for _ in range(1 + _STEPS)][1:]
    ((*_, one),) = latencies([net], shape, where, (1,))
    return Speed(latency_ms=1000 * one.seconds, images_per_second=batch_size / statistics.median(seconds))


def _step_seconds(net: torch.nn.Module, images: torch.Tensor, precision: str) -> float:
    started = time.perf_counter()
    net.train().zero_grad(set_to_none=True)
    with autocast(precision, images.device):
        loss = F.cross_entropy(net(images), images.new_zeros(len(images), dtype=torch.long))
    loss.backward()
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started
