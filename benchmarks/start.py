"""Measure how soon commands answer and training starts, and a run's peak memory: python benchmarks/start.py DATA_DIR

Each command is timed from the start to the end of its process. A run is timed to the end of its first optimizer step,
including the start of Python, imports and data loading; then it finishes one epoch and writes its folder. Its peak
memory is that of the process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import Numbers, Recorder, in_process, parser, run_main, take_turns

from resfit.errors import RunFailed

COMMANDS = ("--help", "recipes", "show seed003", "design --budget 5M --family wrn", "design --budget 5M")


def answered(command: str) -> Numbers:
    """Return the seconds that a resfit command takes."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "resfit", *command.split()], capture_output=True, check=False)
    if done.returncode:
        raise RunFailed(f"exit status {done.returncode} (resfit {command})")
    return {"seconds": time.monotonic() - began}


def trained(data_dir: str, recipe: str, began: float) -> Numbers:
    """Train one epoch in this process; return the seconds from `began` (time.monotonic) to its first step."""
    from resfit.observer import Observer
    from resfit.recipe import get_recipe
    from resfit.run import train

    steps: list[float] = []

    class Watch(Observer):
        """Observer that records the time of each step."""

        def stepped(self, epoch: int, done: float) -> None:
            """Record the time."""
            steps.append(time.monotonic() - began)

    with TemporaryDirectory() as folder:
        train(
            get_recipe(recipe, {"train.epochs": 1}),
            data_dir=data_dir,
            out=Path(folder),
            device="cpu",
            offline=True,
            observer=Watch(),
        )
    return {"seconds": steps[0]}


def main() -> None:
    """Measure in turn, print and record."""
    options_parser = parser(__doc__)
    options_parser.add_argument("data_dir", type=Path, help="the folder that holds the recipe's data")
    options_parser.add_argument("--recipe", default="cifar10-94")
    options_parser.add_argument("--rounds", type=int, default=3)
    options = options_parser.parse_args()
    recorder = Recorder(benchmark="start", subject=options.recipe, settings={}, device="cpu", out=options.out)
    what = {"data_dir": options.data_dir, "recipe": options.recipe}
    measure = {f"resfit {command}": (lambda command=command: answered(command)) for command in COMMANDS}
    measure["first step"] = lambda: in_process(trained, **what, began=time.monotonic())
    take_turns(recorder, measure, lambda found: {}, options.rounds)


if __name__ == "__main__":
    run_main(main)
