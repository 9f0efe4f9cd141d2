"""Processes that save or train until they are killed. They come from a server that has torch in memory already."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from helpers.runs import FOLDER

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "resfit.run", "sklearn.datasets", "scipy.stats"])


def begin(work: Callable[..., None], *arguments: Any) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    """Start work(ready, *arguments) in a process, and wait until it sends its first word."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    assert ours.recv() == "ready"
    return process, ours


def kill_within(process: multiprocessing.process.BaseProcess, seconds: float, chance: random.Random) -> bool:
    """SIGKILL at a random moment; False where the process had ended well before it."""
    time.sleep(chance.uniform(0, seconds))
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "it failed by itself"
    return process.exitcode != 0


def save_forever(ready: Connection, folder: str, start: int) -> None:
    """Save states that tell their number, one after the other."""
    from resfit.checkpoint import STATE, save_state

    torch.set_num_threads(1)
    ready.send("ready")
    for number in range(start, start + 100_000):
        save_state(Path(folder) / STATE, numbered_state(number))


def write_carelessly(ready: Connection, folder: str, start: int) -> None:
    """The same by hand, without a temporary file: what the harness has to catch."""
    from resfit import checkpoint

    torch.set_num_threads(1)
    checkpoint.write_atomic = lambda path, content, keep: path.write_bytes(content)
    save_forever(ready, folder, start)


def numbered_state(number: int) -> dict[str, Any]:
    """About 400 KB that are all of one number."""
    return {"number": number, "weights": torch.full((100_000,), float(number))}


def train_on(ready: Connection, plain_recipe: dict[str, Any], out: str) -> None:
    """Begin the run, or go on with it, saving after each step."""
    from resfit import run, runner
    from resfit.checkpoint import has_state
    from resfit.recipe import Recipe

    torch.set_num_threads(1)
    runner._SAVES_SHARE = 1e9
    recipe = Recipe.from_dict(plain_recipe)
    ready.send("ready")
    run.train(recipe, out=out, resume=has_state(run.run_folder(out, recipe, 0)))


def trained(plain_recipe: dict[str, Any], out: Path) -> Path:
    """The folder of a run that is left alone to its end."""
    process, _pipe = begin(train_on, plain_recipe, str(out))
    process.join()
    assert process.exitcode == 0
    assert not list((out / FOLDER).glob(".*"))
    return out / FOLDER


def refuse(line: str) -> None:
    """What is told of a damaged state; there must be none."""
    raise AssertionError(line)


def train_again_and_again(tell: Connection, plain_recipe: dict[str, Any], out: str, seconds: float) -> None:
    """Run after run in one process; told after each: its number, the process's memory in bytes and its open files."""
    from resfit import run
    from resfit.recipe import Recipe

    torch.set_num_threads(1)
    tell.send("ready")
    recipe, ends, number = Recipe.from_dict(plain_recipe), time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        run.train(recipe, out=Path(out) / str(number))
        tell.send((number, memory("self"), len(list(Path("/proc/self/fd").iterdir()))))
        number += 1
    tell.close()


def memory(process: int | str) -> int:
    """The bytes of memory that a process holds (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return 1024 * int(kibibytes)
