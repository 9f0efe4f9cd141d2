"""One run in several processes that torchrun started, on one machine or several.

All processes take the same steps over the same batches. Each works on its shard of the images of a batch, and their
results are summed: by gloo where they lie on CPUs, by NCCL on GPUs. A single process gets back what it gave. Functions
that communicate have to be called by all processes, in the same order.
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
from resfit.memory import keep_pages
from resfit.processes import under_torchrun

T = TypeVar("T")

_PATIENCE = timedelta(minutes=30)  # with a process that neither answers nor ends

_rank, _count = 0, 1
_store: Any = None
_joins = 0


@contextmanager
def joined() -> Iterator[None]:
    """Join torchrun's process group for the block; without torchrun nothing happens.

    If the block raises, the group stays open until this process exits. That is how the others notice, after this one
    has printed its reason (`is_first_to_fail`).
    """
    global _rank, _count, _store, _joins
    if _count > 1 or not under_torchrun():
        yield
        return
    if dist.is_initialized():
        raise BadInput("torch.distributed is in use already: let resfit begin it")
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
    """Turns what torch says of a process that was killed, or cannot be reached, into one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0])[:100].rstrip(". ")
        raise RunFailed(
            f"another process of this run was killed or cannot be reached ({reason}): go on from the last checkpoint "
            "with resfit train --resume RUN"
        ) from error


def is_single() -> bool:
    """Whether one process works on the run alone."""
    return _count == 1


def is_main() -> bool:
    """Whether this is the process that writes and shows: that of rank 0."""
    return _rank == 0


def world_size() -> int:
    """How many processes work on the run."""
    return _count


def is_first_to_fail() -> bool:
    """True for the first process that asks: the others fail only in its wake, and need not say why."""
    try:
        return _store is None or int(_store.add("failed", 1)) == 1
    except RuntimeError:  # torchrun has ended
        return True


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of GPUs each takes one. Raises BadInput where they do not suffice."""
    if is_single() or device.type != "cuda":
        return device
    if device.index is not None:
        raise BadInput(f"several processes cannot share a GPU (device {device}): give cuda, and each takes its own")
    gpus, processes = torch.cuda.device_count(), os.environ["LOCAL_WORLD_SIZE"]
    if _local_rank() >= gpus:
        raise BadInput(
            f"{processes} processes but {gpus} GPUs on this machine (--nproc-per-node): start one for each, or give "
            "--device cpu"
        )
    return torch.device("cuda", _local_rank())


def barrier() -> None:
    """Return when all processes have come here."""
    sum_int(0)


@contextmanager
def local_main_first() -> Iterator[None]:
    """The first process of each machine runs the block ahead of the others: it downloads, and they find it done."""
    first = is_single() or _local_rank() == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()


def shard(count: int) -> slice:
    """Which of `count` rows are this process's; shards differ by at most one row and may be empty."""
    return slice(count * _rank // _count, count * (_rank + 1) // _count)


def all_gather_rows(part: Tensor, count: int) -> Tensor:
    """All `count` rows on every process, from the `shard` that each of them has."""
    if is_single():
        return part
    rows = part.new_zeros(count, *part.shape[1:])
    rows[shard(count)] = part
    return _added_up(rows)


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    return value if is_single() else _added_up(value.clone())


def sum_int(count: int) -> int:
    """The sum of a whole number over all processes."""
    return count if is_single() else int(_added_up(torch.tensor(count)))


def all_reduce_max(*values: int) -> tuple[int, ...]:
    """The largest of each whole number over all processes."""
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
    """What `make` returns in the first process, for all of them: plain values, and tensors, which arrive on the CPU."""
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
    """The first process's content, in all."""
    size = torch.tensor(len(content or b""))
    with _others():
        dist.broadcast(size, 0)
        room = torch.frombuffer(bytearray(content or bytes(int(size))), dtype=torch.uint8)
        dist.broadcast(room, 0)
    return room.numpy().tobytes()


def require_same(what: str, value: str) -> None:
    """Raise BadInput where `value` is not that of the first process."""
    if broadcast(lambda: value) != value:
        raise BadInput(f"the processes of this run have different {what} (process {_rank}): give all of them the same")


def broadcast_state(net: nn.Module) -> None:
    """Give `net` the weights and buffers that it has in the first process."""
    if not is_single():
        net.load_state_dict(broadcast(net.state_dict))


def seed_this_rank(*place: int) -> None:
    """Give each process but the first its own seed for torch's global generator, from its rank and `place` alone.

    So dropout and the like differ from process to process, and a resumed run draws what an undisturbed one does. The
    first process keeps its generator's state.
    """
    if not is_main():
        torch.manual_seed(random.Random(repr((_rank, *place))).getrandbits(63))


class BatchNorm(torch.autograd.Function):
    """Batch normalization of x [N, C, H, W] by mean and variance over the images of all processes.

    Also gives the mean and the unbiased variance, [C]. Each process returns its own part of the gradients of weight
    and bias, as it does of all others. torch's SyncBatchNorm does the same on GPUs alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, weight [C] and bias [C]."""
        mean, variance, count = _statistics(x, bias)
        unbiased = variance * count / (count - 1).clamp(min=1)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """With y = (x - mean) / deviation: scale (gradient - mean of gradient - y mean of (y gradient))."""
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
    """Mean and biased variance [C] of x over all processes, in the type of `like` [C], and how many pixels they have.

    Merged from each process's own (Chan et al. 1979), as a sum of squares would lose digits.
    """
    channels = x.shape[1]
    own = like.new_zeros(2 * channels + 1)
    if len(x):
        own[0] = x.numel() // channels
        unused = like.new_zeros(2, channels)  # running statistics, whose type decides that of the result
        own[1:] = torch.cat(torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0))
    counts, means, variances = all_gather_rows(own[None], _count).split((1, channels, channels), dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count
    return mean, variance, count
