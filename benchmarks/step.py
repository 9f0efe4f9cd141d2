"""Measure training speed: resfit's loop, the usual PyTorch loop and the machine's peak, alternating.

    python benchmarks/step.py DATA_DIR [--recipe NAME ...] [--precision fp32 bf16] [--rounds 3] [--seconds 20]

The usual loop: torchvision's CIFAR10 and transforms in a DataLoader with one worker per core (at least 2, at most 8),
fp32, NCHW, the same network, optimizer and batch size. The ceiling is a matrix product in the same precision. One
record per recipe: images per second, share of the ceiling, ratio to the usual loop, and peak memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ceiling
from common import Numbers, Recorder, Round, in_process, parser, run_main, take_turns
from torch import Tensor

from resfit.cost import cost
from resfit.device import pick_device
from resfit.machine import cores
from resfit.recipe import Recipe, get_recipe
from resfit.train import Trainer

# Keep the work per step constant: no progressive resizing, no freezing of the stem.
STEADY = {"train.resize": [], "train.freeze_stem_after": None, "train.epochs": 1_000_000}


@dataclass(kw_only=True)
class ShortEpochs(Trainer):
    """A trainer whose epochs end after `steps` batches, drawn from the whole data set."""

    steps: int

    def _batches(self, order: Tensor) -> list[Tensor]:
        return super()._batches(order)[: self.steps]

    def images_per_second(self, seconds: float) -> float:
        """Return the speed over at least one epoch and about `seconds`, after a warm-up epoch."""
        self.warm_up()
        self.train_epoch()
        images = spent = 0.0
        while spent <= seconds:
            result = self.train_epoch()
            images, spent = images + result.images, spent + result.seconds
        return images / spent


def ours(
    recipe_name: str, data_dir: str, seconds: float, precision: str, device: str, steps: int, compiled: bool = False
) -> Numbers:
    """Measure resfit's own loop on the recipe."""
    import torch

    from resfit.data import load_dataset
    from resfit.data.normalize import normalizer
    from resfit.fast import fast_process
    from resfit.net import build

    recipe = get_recipe(recipe_name, {**STEADY, "train.precision": precision, "train.compile": compiled})
    with fast_process():
        data = load_dataset(recipe.data, size=recipe.spec.input.size, data_dir=Path(data_dir), offline=True)
        where = torch.device(device)
        trainer = ShortEpochs(
            net=build(recipe.spec, recipe.init).to(where),
            recipe=recipe,
            images=data.train.images.to(where),
            labels=data.train.labels.to(where),
            normalize=normalizer(data.mean, data.std, where),
            seed=0,
            precision=precision,
            steps=steps,
        )
        return {"images_per_second": trainer.images_per_second(seconds)}


def usual(recipe_name: str, data_dir: str, seconds: float, device: str, steps: int) -> Numbers:
    """Measure the loop of most PyTorch tutorials, with the same network."""
    import torch
    import torch.nn.functional as F
    from torchvision import datasets, transforms

    from resfit.net import build
    from resfit.optim import make_optimizers

    recipe = get_recipe(recipe_name)
    net = build(recipe.spec, recipe.init).to(device, memory_format=torch.contiguous_format)
    optimizers = make_optimizers(net, recipe.optim)
    drawn = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*drawn, transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))])
    data = datasets.CIFAR10(data_dir, train=True, transform=transform)
    size = recipe.train.batch_size
    loader = torch.utils.data.DataLoader(data, size, shuffle=True, num_workers=loader_workers(), drop_last=True)

    def loop() -> Iterator[int]:
        while True:
            for images, labels in loader:
                loss = F.cross_entropy(net(images.to(device)), labels.to(device))
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                loss.item()
                yield len(images)

    return {"images_per_second": images_per_second(loop(), seconds, warm_up=min(steps, 2))}


def loader_workers() -> int:
    """Return the number of DataLoader workers of the usual loop."""
    return max(2, min(8, cores()))


def images_per_second(loop: Iterator[int], seconds: float, warm_up: int) -> float:
    """Return the speed of a loop that yields each step's number of images, after `warm_up` steps."""
    for _ in range(warm_up):
        next(loop)
    started, images = time.perf_counter(), 0
    for count in loop:
        images += count
        if time.perf_counter() - started > seconds:
            break
    return images / (time.perf_counter() - started)


def flop_per_image(recipe: Recipe) -> int:
    """Return the FLOP of a training step per image: forward, and twice as much backward, two operations per MAC."""
    return 6 * cost(recipe.spec).macs


def compare(found: Round, *, flop: int, precisions: list[str]) -> Numbers:
    """Return each precision's speed relative to the usual loop and to its ceiling, also with torch.compile."""
    ratios = {}
    for precision in precisions:
        for kind in (precision, f"{precision} compiled"):
            speed = found.get(f"resfit {kind}", {}).get("images_per_second")
            if speed and "usual" in found:
                ratios[f"{kind} to usual"] = speed / found["usual"]["images_per_second"]
            if speed and f"ceiling {precision}" in found:
                ceiling = found[f"ceiling {precision}"]["matrix product"]
                ratios[f"{kind} share of ceiling"] = speed * flop / 1e9 / ceiling
    return ratios


def main() -> None:
    """Measure each recipe in turn, print and record."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=3, help="how often each measurement is taken")
    options_parser.add_argument("data_dir", type=Path, help="the folder that holds CIFAR-10")
    options_parser.add_argument("--recipe", nargs="+", default=ceiling.RECIPES)
    options_parser.add_argument("--precision", nargs="+", default=list(ceiling.PRECISIONS), choices=ceiling.PRECISIONS)
    options_parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement, about")
    options_parser.add_argument("--steps", type=int, help="steps between two looks at the clock (10; 100 on a GPU)")
    options_parser.add_argument("--compile", action="store_true", help="measure resfit by torch.compile as well")
    options_parser.add_argument("--side", type=int, help="rows and columns of the ceiling's matrices")
    options = options_parser.parse_args()
    device = pick_device(options.device).type
    steps = options.steps or (100 if device == "cuda" else 10)
    for name in options.recipe:
        recipe = get_recipe(name)
        loop = {"recipe_name": name, "data_dir": options.data_dir, "seconds": options.seconds, "steps": steps}
        turns = {}
        for precision in options.precision:
            kind = {"device": device, "precision": precision}
            turns[f"ceiling {precision}"] = partial(in_process, ceiling.matrix_product, **kind, side=options.side)
            turns[f"resfit {precision}"] = partial(in_process, ours, **loop, **kind)
            if options.compile:
                turns[f"resfit {precision} compiled"] = partial(in_process, ours, **loop, **kind, compiled=True)
        turns["usual"] = partial(in_process, usual, **loop, device=device)
        flop = flop_per_image(recipe)
        batch, workers = recipe.train.batch_size, loader_workers()
        settings = {"batch": batch, "flop_per_image": flop, "seconds": options.seconds, "loader_workers": workers}
        recorder = Recorder(benchmark="step", subject=recipe.name, settings=settings, device=device, out=options.out)
        take_turns(recorder, turns, partial(compare, flop=flop, precisions=options.precision), options.rounds)


if __name__ == "__main__":
    run_main(main)
