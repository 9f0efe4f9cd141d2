"""Half an hour of training, scoring and saving, with kills: nothing grows, each run ends as an undisturbed one does.

RESFIT_SOAK_MINUTES sets another length; RESFIT_SOAK_RECORD names a file for what was seen.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.killing import begin, kill_within, refuse, train_again_and_again, train_on, trained
from helpers.runs import EVERYTHING, FOLDER, left_by
from helpers.tiny_recipe import TINY
from resfit.checkpoint import has_state, newest_state
from resfit.environment import environment
from resfit.recipe import Recipe

MINUTES = float(os.environ.get("RESFIT_SOAK_MINUTES", "30"))
DIGITS = Recipe.from_dict(TINY).replace({**EVERYTHING, "train.epochs": 6})
CIFAR10 = DIGITS.replace(
    {
        "spec.input": {"channels": 3, "size": 32},
        "data.name": "cifar10",
        "data.fraction": 0.05,
        "train.epochs": 2,
        "train.checkpoint_minutes": 0.01,
        "evaluate.tta": "none",
    }
)
WARM = 3  # runs until a process holds what it is going to hold


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_half_an_hour_of_kills(cifar10_dir: Path, tmp_path: Path) -> None:
    seen: dict[str, Any] = {"minutes": MINUTES, "kills": 0, "runs": 0}
    recipes = {"digits": DIGITS.to_dict(), "cifar10": CIFAR10.to_dict()}
    wholes = {name: trained(plain, tmp_path / name / "whole") for name, plain in recipes.items()}
    undisturbed = {name: (left_by(folder), files(folder)) for name, folder in wholes.items()}
    chance, ends = random.Random(0), time.monotonic() + 60 * MINUTES / 2
    while time.monotonic() < ends:
        for name, plain in recipes.items():
            run = tmp_path / name / "killed"
            while not (run / FOLDER / "record.json").exists():
                process, _pipe = begin(train_on, plain, str(run))
                seen["kills"] += kill_within(process, 8.0, chance)
                if has_state(run / FOLDER):
                    newest_state(run / FOLDER, refuse)
            assert (left_by(run / FOLDER), files(run / FOLDER)) == undisturbed[name]
            seen["runs"] += 1
            shutil.rmtree(run)
    assert seen["kills"] > 0

    process, told = begin(train_again_and_again, recipes["digits"], str(tmp_path / "again"), 60 * MINUTES / 2)
    memories, descriptors = [], []
    while True:
        try:
            _number, memory, opened = told.recv()
        except EOFError:
            break
        memories.append(memory)
        descriptors.append(opened)
    process.join()
    assert process.exitcode == 0 and len(memories) > 2 * WARM
    seen |= {"runs in one process": len(memories), "bytes after each": memories, "open files after each": descriptors}
    if record := os.environ.get("RESFIT_SOAK_RECORD"):
        Path(record).write_text(json.dumps({**seen, "env": environment(torch.device("cpu"))}, indent=1) + "\n")
    assert max(descriptors[WARM:]) == descriptors[WARM]
    assert memories[-1] < 1.05 * memories[WARM]


def files(folder: Path) -> set[str]:
    """The names in a run folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
