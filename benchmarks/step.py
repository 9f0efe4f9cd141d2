"""How fast a training step is: resfit's loop, the usual PyTorch loop and the machine's ceiling, in turn, in one run.

    python benchmarks/step.py DATA_DIR [--recipe seed001d] [--rounds 3] [--seconds 20] [--out FILE]

The usual loop: torchvision's CIFAR10, its transforms in a DataLoader with two workers, fp32, NCHW, the same network,
optimizer and batch size. Each measurement is a process of its own, since memory settings are a process's. Ratios are
taken round by round, because the machine's speed drifts; the medians are printed and written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def ceiling() -> dict[str, float]:
    """GFLOP/s of a 4096³ matrix product, the best of three, in fp32 and in bf16."""
    import torch

    found = {}
    for name, dtype, side in (("fp32", torch.float32, 4096), ("bf16", torch.bfloat16, 2048)):
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        times = []
        for _ in range(4):
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
        found[name] = 2 * side**3 / min(times[1:]) / 1e9
    return found


def ours(recipe_name: str, data_dir: Path, seconds: float) -> dict[str, float | str]:
    """resfit's own loop on the recipe."""
    import torch

    from resfit.data import load_dataset
    from resfit.data.normalize import normalizer
    from resfit.net import build
    from resfit.recipe import get_recipe
    from resfit.run import fast_process
    from resfit.train import Trainer, usable_precision

    recipe = get_recipe(recipe_name, {"train.resize": []})
    data = load_dataset(recipe.data, size=32, data_dir=data_dir, offline=True)
    cpu, batch = torch.device("cpu"), recipe.train.batch_size
    net, precision = build(recipe.spec, recipe.init), usable_precision("auto", cpu)

    def epoch(images: int) -> float:
        """Images a second over an epoch of so many images."""
        result = Trainer(
            net=net,
            recipe=recipe,
            images=data.train.images[:images],
            labels=data.train.labels[:images],
            normalize=normalizer(data.mean, data.std, cpu),
            seed=0,
            precision=precision,
        ).train_epoch()
        return result.images / result.seconds

    with fast_process():
        epoch(batch)
        speed = epoch(round(seconds * epoch(2 * batch) / batch + 1) * batch)
    return {"images_per_second": speed, "precision": precision}


def images_per_second(steps: Iterator[int], seconds: float) -> float:
    """Images a second of a loop that yields the images of each step, after two steps of warm-up."""
    next(steps), next(steps)
    started, images = time.perf_counter(), 0
    for count in steps:
        images += count
        if time.perf_counter() - started > seconds:
            break
    return images / (time.perf_counter() - started)


def usual(recipe_name: str, data_dir: Path, seconds: float) -> dict[str, float | str]:
    """The loop that most tutorials have, on the same network."""
    import torch
    import torch.nn.functional as F
    from torchvision import datasets, transforms

    from resfit.net import build
    from resfit.optim import make_optimizers
    from resfit.recipe import get_recipe

    recipe = get_recipe(recipe_name)
    net = build(recipe.spec, recipe.init).to(memory_format=torch.contiguous_format)
    optimizers = make_optimizers(net, recipe.optim)
    steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))])
    data = datasets.CIFAR10(str(data_dir), train=True, transform=transform)
    loader = torch.utils.data.DataLoader(data, recipe.train.batch_size, shuffle=True, num_workers=2, drop_last=True)

    def loop() -> Iterator[int]:
        while True:
            for images, labels in loader:
                loss = F.cross_entropy(net(images), labels)
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                loss.item()
                yield len(images)

    return {"images_per_second": images_per_second(loop(), seconds), "precision": "fp32"}


def measured(what: str, options: argparse.Namespace) -> dict[str, float]:
    """The numbers of one measurement in a process of its own."""
    command = [sys.executable, __file__, str(options.data_dir), "--only", what, "--recipe", options.recipe]
    done = subprocess.run([*command, "--seconds", str(options.seconds)], check=True, capture_output=True, text=True)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    """Measure in turn, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--recipe", default="seed001d")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["ceiling", "ours", "usual"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        loops = {"ours": ours, "usual": usual}
        numbers = (
            ceiling()
            if options.only == "ceiling"
            else loops[options.only](options.recipe, options.data_dir, options.seconds)
        )
        print(json.dumps(numbers))
        return

    import torch

    from resfit.cost import cost
    from resfit.environment import environment
    from resfit.recipe import get_recipe

    flop = 6 * cost(get_recipe(options.recipe).spec).macs  # forward and twice as much backward, 2 a MAC
    rounds = []
    for n in range(options.rounds):
        found = {what: measured(what, options) for what in ("ceiling", "ours", "usual")}
        speed = found["ours"]["images_per_second"]
        top = found["ceiling"][found["ours"]["precision"]]  # type: ignore[index]
        found["ratio_to_usual"] = speed / found["usual"]["images_per_second"]  # type: ignore[assignment]
        found["share_of_ceiling"] = speed * flop / 1e9 / top  # type: ignore[assignment]
        rounds.append(found)
        print(f"round {n + 1}: {json.dumps(found)}", flush=True)
    names = ("ratio_to_usual", "share_of_ceiling")
    medians = {name: statistics.median([found[name] for found in rounds]) for name in names}  # type: ignore[type-var]
    record = {
        "recipe": options.recipe,
        "flop_per_image": flop,
        "medians": medians,
        "rounds": rounds,
        "env": environment(torch.device("cpu")),
    }
    print(json.dumps(medians))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
