"""Compare an export's logits with its network's on real images, and measure the latency of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from resfit.export.formats import Answer
from resfit.record import Agreement, CallTimes

BATCH_SIZES = (1, 7, 64)

_IMAGES = 1000  # images that the smaller batch sizes are tested on
_WARM_UP, _CALLS, _FEWEST_CALLS, _SECONDS = 3, 100, 10, 5.0


@torch.no_grad()
def logits_of(answer: Answer, images: Tensor, batch_size: int) -> Tensor:
    """Return logits, float32 [N, K], of uint8 images [N, C, H, W], computed in batches of `batch_size`."""
    return torch.cat([answer(batch).clone() for batch in images.split(batch_size)])


def agreements(answer: Answer, images: Tensor, expected: Tensor) -> tuple[list[Agreement], Tensor]:
    """Return how `answer` agrees with the logits `expected` at each batch size, and its logits [N, K] at the largest.

    The largest batch size is tested on all images, the others on the first 1,000.
    """
    found = []
    for size in BATCH_SIZES:
        part = images if size == max(BATCH_SIZES) else images[:_IMAGES]
        logits = logits_of(answer, part, size)
        found.append(agreement(logits, expected[: len(part)], size))
    return found, logits


def agreement(logits: Tensor, expected: Tensor, batch_size: int) -> Agreement:
    """Compare two sets of logits [N, K]; a NaN counts as an infinite difference."""
    difference = (logits - expected).abs().nan_to_num(nan=torch.inf).max().item()
    equal = int((logits.argmax(1) == expected.argmax(1)).sum())
    return Agreement(
        batch_size=batch_size, images=len(logits), largest_difference=difference, equal=equal / len(logits)
    )


@torch.no_grad()
def latency(answer: Answer, images: Tensor, runtime: str) -> Iterator[CallTimes]:
    """Yield the times of single calls at each batch size: 100 calls, or as many as fit into 5 s, but at least 10."""
    for size in BATCH_SIZES:
        batch = images[torch.arange(size) % len(images)]
        for _ in range(_WARM_UP):
            answer(batch)
        times: list[float] = []
        while len(times) < _CALLS and (len(times) < _FEWEST_CALLS or sum(times) < 1000 * _SECONDS):
            started = time.perf_counter()
            answer(batch)
            times.append(1000 * (time.perf_counter() - started))
        yield CallTimes(
            runtime=runtime,
            batch_size=size,
            calls=len(times),
            median_ms=statistics.median(times),
            p99_ms=statistics.quantiles(times, n=100, method="inclusive")[-1],
        )
