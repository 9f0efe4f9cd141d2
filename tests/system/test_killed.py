"""SIGKILL at random moments: the newest complete state always loads, and the run ends as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from helpers.killing import begin, kill_within, refuse, save_forever, train_on, trained, write_carelessly
from helpers.runs import EVERYTHING, FOLDER, left_by
from helpers.tiny_recipe import TINY
from resfit.checkpoint import STATE, has_state, newest_state
from resfit.errors import BadInput
from resfit.files import remove_leftovers
from resfit.recipe import Recipe


def killed_while_saving(folder: Path, kills: int) -> int:
    """Kill a process that saves, so many times; the last state's number. The states never go back, and are whole."""
    chance, last = random.Random(0), -1
    for _ in range(kills):
        process, _pipe = begin(save_forever, str(folder), last + 1)
        assert kill_within(process, 0.1, chance)
        if has_state(folder):
            state = newest_state(folder, refuse)
            assert state["number"] >= last
            assert torch.equal(state["weights"], torch.full((100_000,), float(state["number"])))
            last = state["number"]
        remove_leftovers(folder)
        assert {path.name for path in folder.iterdir()} <= {STATE, "state.previous.pt"}
    return last


def test_ten_kills_while_saving(tmp_path: Path) -> None:
    assert killed_while_saving(tmp_path, 10) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_while_saving(tmp_path: Path) -> None:
    assert killed_while_saving(tmp_path, 200) > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_of_a_careless_writer_are_noticed(tmp_path: Path) -> None:
    """The negative control: the harness sees a file that is written in place."""
    chance, damaged = random.Random(0), 0
    for n in range(200):
        process, _pipe = begin(write_carelessly, str(tmp_path), n)
        assert kill_within(process, 0.1, chance)
        try:
            newest_state(tmp_path, refuse)
        except BadInput:
            damaged += 1
    assert damaged > 0


def assert_kills_change_nothing(recipe: Recipe, out: Path, kills: int, seconds: float) -> None:
    """Kill runs of `recipe`, each within so many seconds of its restart; they end as an undisturbed one does.

    Where a run ends before that many kills, another one begins.
    """
    chance, plain, runs, killed = random.Random(0), recipe.to_dict(), [out / "0"], 0
    while killed < kills:
        process, _pipe = begin(train_on, plain, str(runs[-1]))
        killed += kill_within(process, seconds, chance)
        if has_state(runs[-1] / FOLDER):
            newest_state(runs[-1] / FOLDER, refuse)
        if (runs[-1] / FOLDER / "record.json").exists():
            runs.append(out / str(len(runs)))
    whole = left_by(trained(plain, out / "whole"))
    assert left_by(trained(plain, runs.pop())) == whole
    assert all(left_by(run / FOLDER) == whole for run in runs)


def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(TINY).replace({**EVERYTHING, "train.checkpoint_minutes": 1e-9})
    assert_kills_change_nothing(recipe, tmp_path, kills=4, seconds=0.6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills_of_a_training(tmp_path: Path) -> None:
    longer = {"train.epochs": 5, "train.batch_size": 64, "train.checkpoint_minutes": 1e-9}
    recipe = Recipe.from_dict(TINY).replace({**EVERYTHING, **longer})
    assert_kills_change_nothing(recipe, tmp_path, kills=200, seconds=1.5)
