"""Measure this machine's peak speed: matrix products, and the convolutions of resfit's own networks.

    python benchmarks/ceiling.py [--recipe NAME ...] [--rounds 3] [--device cpu] [--out DIR]

Reports GFLOP/s in fp32 and bf16, the best of several tries in each round. Convolutions run in channels_last on a batch
of --batch images: forward alone, and forward and backward, which is three times the work. A convolution is named by its
input channels, output channels, kernel, stride and input side: "64-128 3x3/2 @32".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from common import Numbers, Recorder, Round, in_process, parser, run_main, take_turns

from resfit.device import pick_device
from resfit.recipe import get_recipe
from resfit.spec import ConvPlan, NetSpec

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int, int, int, int]  # input channels, output channels, kernel, stride, side of the input

RECIPES = ["cifar10-94", "seed001d", "seed003"]
PRECISIONS = ("fp32", "bf16")
TRIES = 4
_SIDES = {"cpu": {"fp32": 4096, "bf16": 2048}, "cuda": {"fp32": 8192, "bf16": 16384}}


def matrix_product(device: str, precision: str, side: int | None = None) -> Numbers:
    """Return the GFLOP/s of a square matrix product."""
    import torch

    side = side or _SIDES[device][precision]
    a, b = (torch.randn(side, side, device=device).to(_dtype(precision)) for _ in "ab")
    return {"matrix product": 2 * side**3 / seconds(lambda: a @ b, device) / 1e9}


def convolutions(device: str, precision: str, batch: int, shapes: list[Shape]) -> Numbers:
    """Return the GFLOP/s of convolutions, forward alone, and forward and backward."""
    import torch
    import torch.nn.functional as F

    from resfit.malloc import keep_pages

    keep_pages()
    found = {}
    for c_in, c_out, kernel, stride, side in shapes:
        like = {"dtype": _dtype(precision), "device": device}
        images = torch.randn(batch, c_in, side, side, **like).to(memory_format=torch.channels_last)
        filters = torch.randn(c_out, c_in, kernel, kernel, **like).to(memory_format=torch.channels_last)
        convolve = partial(F.conv2d, stride=stride, padding=kernel // 2)
        flop = 2 * batch * c_in * c_out * kernel**2 * (-(-side // stride)) ** 2
        name = f"{c_in}-{c_out} {kernel}x{kernel}/{stride} @{side}"
        with torch.no_grad():
            found[name] = flop / seconds(lambda: convolve(images, filters), device) / 1e9  # noqa: B023
        inputs = (images.requires_grad_(), filters.requires_grad_())
        output = torch.ones_like(convolve(*inputs))
        both = seconds(lambda: torch.autograd.grad(convolve(*inputs), inputs, output), device)  # noqa: B023
        found[f"{name} with backward"] = 3 * flop / both / 1e9
    return found


def seconds(work: Callable[[], object], device: str) -> float:
    """Return the shortest of several tries after a warm-up; on a GPU each is several calls, to hide launch overhead."""
    import torch

    wait, calls = (torch.cuda.synchronize, 10) if device == "cuda" else (lambda: None, 1)
    times = []
    for _ in range(TRIES + 1):
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        times.append((time.perf_counter() - started) / calls)
    return min(times[1:])


def _dtype(precision: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def conv_shapes(spec: NetSpec) -> Iterator[Shape]:
    """Yield every convolution of a network's blocks."""
    side, _ = spec.sizes()
    for _, _, block in spec.plan():
        for projection in block.projections:
            yield _shape(projection, -(-(side // block.pool) // block.blur))  # a blur rounds up
        for conv in block.convs:
            yield _shape(conv, side)
            _, side = conv.sides(side)


def _shape(conv: ConvPlan, side: int) -> Shape:
    return conv.in_channels, conv.out_channels, conv.kernel, conv.stride, side


def measured(device: str, precision: str, batch: int, shapes: list[Shape], side: int | None) -> Numbers:
    """Return all GFLOP/s of one precision; on a GPU, fp32 is not TF32, and cuDNN chooses its fastest algorithms."""
    import torch

    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    return {**matrix_product(device, precision, side), **convolutions(device, precision, batch, shapes)}


def compare(found: Round) -> Numbers:
    """Return the speedup of bf16 over fp32."""
    fp32, bf16 = (found.get(precision, {}) for precision in PRECISIONS)
    return {name: bf16[name] / fp32[name] for name in bf16 if name in fp32 and not name.startswith("peak")}


def main() -> None:
    """Measure in turn, print and record."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=3, help="how often each measurement is taken")
    options_parser.add_argument("--recipe", nargs="+", default=RECIPES, help="whose networks' convolutions to take")
    options_parser.add_argument("--batch", type=int, help="images (250; 2,000 on a GPU)")
    options_parser.add_argument("--side", type=int, help="rows and columns of the matrices")
    options = options_parser.parse_args()
    device = pick_device(options.device).type
    batch = options.batch or (2000 if device == "cuda" else 250)
    shapes = sorted({shape for name in options.recipe for shape in conv_shapes(get_recipe(name).spec)})
    settings = {"recipes": options.recipe, "batch": batch, "side": options.side}
    recorder = Recorder(benchmark="ceiling", subject="kernels", settings=settings, device=device, out=options.out)
    take = partial(in_process, measured, device=device, batch=batch, shapes=shapes, side=options.side)
    turns = {precision: partial(take, precision=precision) for precision in PRECISIONS}
    take_turns(recorder, turns, compare, options.rounds)


if __name__ == "__main__":
    run_main(main)
