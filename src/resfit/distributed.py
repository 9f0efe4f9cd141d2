"""Distributed training: one run in several processes started by torchrun, on one or more machines.

All processes take the same steps over the same batches. Each computes its shard of a batch, and the results are summed,
with gloo on CPUs and NCCL on GPUs. In a single process every collective function returns its input. Functions that
communicate must be called by all processes in the same order.
"""

from __future__ import annotations

import io
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resfit.errors import BadInput, RunFailed
from resfit.malloc import keep_pages
from resfit.processes import under_torchrun

T = TypeVar("T")

_PATIENCE = timedelta(minutes=30)  # timeout for a process that hangs

_rank, _count = 0, 1
_store: Any = None
_joins = 0


@contextmanager
def joined() -> Iterator[None]:
    """Join torchrun's process group for the duration of the block; do nothing without torchrun.

    If the block raises, the group stays open until this process exits, so that the others fail only after this process
    has reported its error (`is_first_to_fail`).
    """
    global _rank, _count, _store, _joins
    if _count > 1 or not under_torchrun():
        yield
        return
    if dist.is_initialized():
        raise BadInput("torch.distributed is already in use: let resfit initialize it")
    from torch.distributed.rendezvous import rendezvous

    keep_pages()
    with _others():
        agent, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
        _joins += 1
        _store = dist.PrefixStore(f"resfit {_joins}", agent)  # type: ignore[attr-defined]
        dist.init_process_group(_backend(), store=_store, rank=rank, world_size=count, timeout=_PATIENCE)
    if _local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(_local_rank())
    _rank, _count = rank, count
    yield
    dist.destroy_process_group()
    _rank, _count, _store = 0, 1, None


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


@contextmanager
def _others() -> Iterator[None]:
    """Convert torch's errors about a killed or unreachable process into RunFailed with a one-line message."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0])[:100].rstrip(". ")
        raise RunFailed(
            f"another process of this run was killed or cannot be reached ({reason}): continue from the last "
            "checkpoint with resfit train --resume RUN"
        ) from error


def is_single() -> bool:
    """Whether the run has only one process."""
    return _count == 1


def is_main() -> bool:
    """Whether this is rank 0, the process that writes files and prints."""
    return _rank == 0


def world_size() -> int:
    """Return the number of processes of the run."""
    return _count


def is_first_to_fail() -> bool:
    """Return True for the first process that calls this: the others fail only as a consequence and print nothing."""
    try:
        return _store is None or int(_store.add("failed", 1)) == 1
    except RuntimeError:  # torchrun has ended
        return True


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process, its own GPU if `device` is cuda; raise BadInput if there are too few GPUs."""
    if is_single() or device.type != "cuda":
        return device
    if device.index is not None:
        raise BadInput(
            f"several processes cannot share a GPU (device {device}): give cuda, so that each process uses its own"
        )
    gpus, processes = torch.cuda.device_count(), os.environ["LOCAL_WORLD_SIZE"]
    if _local_rank() >= gpus:
        raise BadInput(
            f"{processes} processes but {gpus} GPUs on this machine (--nproc-per-node): start one for each, or give "
            "--device cpu"
        )
    return torch.device("cuda", _local_rank())


def barrier() -> None:
    """Wait until all processes have reached this call."""
    sum_int(0)


@contextmanager
def local_main_first() -> Iterator[None]:
    """Run the block in the first process of each machine, then in the others, so that only the first downloads."""
    first = is_single() or _local_rank() == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()


def shard(count: int) -> slice:
    """Return the slice of `count` rows that belongs to this process; sizes differ by at most one and may be zero."""
    return slice(count * _rank // _count, count * (_rank + 1) // _count)


def all_gather_rows(part: Tensor, count: int) -> Tensor:
    """Return all `count` rows in every process, given the `shard` of each."""
    if is_single():
        return part
    rows = part.new_zeros(count, *part.shape[1:])
    rows[shard(count)] = part
    return _added_up(rows)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    return value if is_single() else _added_up(value.clone())


def sum_int(count: int) -> int:
    """Return the sum of an integer over all processes."""
    return count if is_single() else int(_added_up(torch.tensor(count)))


def all_reduce_max(*values: int) -> tuple[int, ...]:
    """Return the maximum of each integer over all processes."""
    if is_single():
        return values
    numbers = torch.tensor(values)
    with _others():
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return tuple(numbers.tolist())


def sum_gradients(net: nn.Module) -> None:
    """Replace each gradient by its sum over all processes."""
    if is_single():
        return
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    flat = _added_up(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _added_up(tensor: Tensor) -> Tensor:
    with _others():
        dist.all_reduce(tensor)
    return tensor


def broadcast(make: Callable[[], T]) -> T:
    """Return the result of `make` on rank 0, plain values and tensors, in all processes (on other ranks on the CPU)."""
    if is_single():
        return make()
    if is_main():
        made = make()
        _broadcast(_packed(made))
        return made
    received: T = torch.load(io.BytesIO(_broadcast(None)), map_location="cpu", weights_only=True)
    return received


def _packed(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _broadcast(content: bytes | None) -> bytes:
    """Return rank 0's `content` in all processes."""
    size = torch.tensor(len(content or b""))
    with _others():
        dist.broadcast(size, 0)
        room = torch.frombuffer(bytearray(content or bytes(int(size))), dtype=torch.uint8)
        dist.broadcast(room, 0)
    return room.numpy().tobytes()


def require_same(what: str, value: str) -> None:
    """Raise BadInput if `value` differs from rank 0's."""
    if broadcast(lambda: value) != value:
        raise BadInput(f"the processes of this run have different {what} (process {_rank}): give all of them the same")


def broadcast_state(net: nn.Module) -> None:
    """Load rank 0's weights and buffers into `net`."""
    if not is_single():
        net.load_state_dict(broadcast(net.state_dict))


def seed_this_rank(*place: int) -> None:
    """Seed torch's global generator from the rank and `place`, except on rank 0, which keeps its generator's state.

    Dropout and other random layers thus differ between processes, and a resumed run draws the same numbers as an
    uninterrupted one.
    """
    if not is_main():
        torch.manual_seed(random.Random(repr((_rank, *place))).getrandbits(63))


class BatchNorm(torch.autograd.Function):
    """Batch normalization of x [N, C, H, W] by mean and variance over the images of all processes.

    Also returns the mean and the unbiased variance, [C]. The gradients of weight and bias are this process's part, like
    those of all other parameters. torch's SyncBatchNorm does the same, but only on GPUs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize x by weight [C] and bias [C]; return the output, the mean and the unbiased variance."""
        mean, variance, count = _statistics(x, bias)
        unbiased = variance * count / (count - 1).clamp(min=1)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """With y = (x - mean) / std and gradient g: dx = weight / std * (g - mean(g) - y * mean(y * g))."""
        x, weight, mean, variance, count = ctx.saved_tensors
        of_weight, of_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        if len(x):
            wanted = (False, True, True)
            _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, ctx.eps, wanted
            )
        with_y, plain = all_reduce_sum(torch.stack((of_weight, of_bias))) / count
        inverse = (variance + ctx.eps).rsqrt()
        scale = weight * inverse
        slope = -scale * inverse * with_y
        shift = -scale * plain - slope * mean
        scale, slope, shift = (value[:, None, None] for value in (scale, slope, shift))
        of_x = (gradient * scale + x * slope + shift).to(x.dtype)
        return of_x, of_weight if ctx.needs_input_grad[1] else None, of_bias, None


def _statistics(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance [C] of x over all processes, in the dtype of `like` [C], and the pixel count.

    The statistics of each process are merged (Chan et al. 1979), because a sum of squares would lose precision.
    """
    channels = x.shape[1]
    own = like.new_zeros(2 * channels + 1)
    if len(x):
        own[0] = x.numel() // channels
        unused = like.new_zeros(2, channels)  # running statistics; their dtype sets the result's
        own[1:] = torch.cat(torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0))
    counts, means, variances = all_gather_rows(own[None], _count).split((1, channels, channels), dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count
    return mean, variance, count
