"""Measure how cost scales with images, parameters, resolution and threads, and with data sets larger than memory.

    python benchmarks/scaling.py [--recipe NAME] [--rounds 3] [--seconds 10] [--scratch DIR]

Images are random, as only speed matters. Each sweep changes one property of the recipe. The data set is resident,
memory-mapped from its cache file, or "cold": mapped, with all pages dropped from memory after each step, so that each
batch is read from the disk that holds --scratch, as for a data set larger than memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import Numbers, Recorder, Round, in_process, parser, run_main, take_turns
from step import STEADY, ShortEpochs

from resfit.cost import cost
from resfit.device import pick_device
from resfit.recipe import Recipe, get_recipe

Storage = Literal["resident", "mapped", "cold"]

_BLOCK = 1000  # images generated at a time


def training(
    recipe_name: str,
    seconds: float,
    steps: int,
    device: str,
    scratch: str,
    images: int,
    width: float = 1.0,
    side: int = 32,
    threads: int = 0,
    storage: Storage = "resident",
) -> Numbers:
    """Measure training speed on random images; `width` multiplies the stages' channels, `threads` 0 means all."""
    import torch

    from resfit.data.normalize import normalizer
    from resfit.device import usable_precision
    from resfit.fast import fast_process
    from resfit.net import build

    if threads:
        torch.set_num_threads(threads)
    recipe = widened(get_recipe(recipe_name, {**STEADY, "spec.input.size": side}), width)
    where, classes = torch.device(device), recipe.spec.num_classes
    with fast_process(), tempfile.TemporaryDirectory(dir=scratch) as folder:
        pixels, forget = stored(Path(folder) / "images.npy", (images, 3, side, side), storage)
        trainer = ShortEpochs(
            net=build(recipe.spec, recipe.init).to(where),
            recipe=recipe,
            images=torch.from_numpy(pixels).to(where),
            labels=torch.arange(images, device=where) % classes,
            normalize=normalizer((0.5,) * 3, (0.25,) * 3, where),
            seed=0,
            precision=usable_precision("auto", where),
            on_step=lambda epoch, done: forget(),
            steps=steps,
        )
        speed = trainer.images_per_second(seconds)
    return {
        "images": images,
        "params": cost(recipe.spec).params,
        "macs": cost(recipe.spec).macs,
        "side": side,
        "threads": torch.get_num_threads(),
        "images_per_second": speed,
    }


def widened(recipe: Recipe, width: float) -> Recipe:
    """Return the recipe with its stages' channels multiplied by `width` and rounded to multiples of eight."""
    stages = tuple(
        replace(stage, channels=max(8, round(stage.channels * width / 8) * 8)) for stage in recipe.spec.stages
    )
    return replace(recipe, spec=replace(recipe.spec, stages=stages), budget=10**9)


def stored(path: Path, shape: tuple[int, ...], storage: Storage) -> tuple[np.ndarray, Callable[[], None]]:
    """Return random uint8 images [N, C, H, W], in memory or mapped from `path`, and a function that evicts them."""
    if storage == "resident":
        pixels = np.empty(shape, dtype=np.uint8)
        for start, block in zip(range(0, len(pixels), _BLOCK), _blocks(shape), strict=True):
            pixels[start : start + len(block)] = block
        return pixels, lambda: None
    from resfit.data.cache import cached_array

    pixels = cached_array(path, shape, _blocks(shape))
    return pixels, partial(_forget, pixels, path) if storage == "cold" else lambda: None


def _blocks(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for start in range(0, shape[0], _BLOCK):
        size = (min(_BLOCK, shape[0] - start), *shape[1:])
        yield generator.integers(0, 256, size, dtype=np.uint8)


def _forget(pixels: np.ndarray, path: Path) -> None:
    """Drop a mapped file's pages from this process, then from the system's page cache."""
    pixels.base.madvise(mmap.MADV_DONTNEED)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sweeps(images: int, device: str) -> dict[str, dict[str, Any]]:
    """Return the measurements by name: the arguments of `training` that differ from the recipe's own."""
    values: dict[str, list[Any]] = {
        "images": [images // 10, images, 4 * images],
        "width": [0.5, 1.0, 2.0],
        "side": [32, 48, 64],
    }
    if device == "cpu":
        cores = os.cpu_count() or 1
        values["threads"] = sorted({*(2**n for n in range(cores.bit_length()) if 2**n <= cores), cores})
        values["storage"] = ["resident", "mapped", "cold"]
    return {f"{name} {value}": {"images": images, name: value} for name, many in values.items() for value in many}


def compare(found: Round) -> Numbers:
    """Return the speed from a mapped file relative to the resident speed."""
    speeds = {name: numbers["images_per_second"] for name, numbers in found.items()}
    resident = speeds.get("storage resident")
    others = {name: speeds.get(f"storage {name}") for name in ("mapped", "cold")}
    return {name: speed / resident for name, speed in others.items() if speed and resident}


def main() -> None:
    """Measure in turn, print and record."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=3, help="how often each measurement is taken")
    options_parser.add_argument("--recipe", default="cifar10-94")
    options_parser.add_argument("--images", type=int, default=50_000, help="of the data set, where they aren't swept")
    options_parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement, about")
    options_parser.add_argument("--steps", type=int, help="steps between two looks at the clock (5; 100 on a GPU)")
    options_parser.add_argument(
        "--scratch", type=Path, default=tempfile.gettempdir(), help="folder of the mapped files"
    )
    options_parser.add_argument("--only", nargs="+", help="of the sweeps: images, width, side, threads, storage")
    options = options_parser.parse_args()
    device, recipe = pick_device(options.device).type, get_recipe(options.recipe)
    steps = options.steps or (100 if device == "cuda" else 5)
    shared = {"recipe_name": options.recipe, "seconds": options.seconds, "steps": steps, "device": device}
    turns = {
        name: partial(in_process, training, **shared, scratch=options.scratch, **arguments)
        for name, arguments in sweeps(options.images, device).items()
        if not options.only or name.split()[0] in options.only
    }
    settings = {"batch": recipe.train.batch_size, "images": options.images, "seconds": options.seconds}
    recorder = Recorder(benchmark="scaling", subject=recipe.name, settings=settings, device=device, out=options.out)
    take_turns(recorder, turns, compare, options.rounds)


if __name__ == "__main__":
    run_main(main)
