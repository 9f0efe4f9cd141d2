"""What a terminal shows beside the plain lines: a bar with the time left, and a live table of many runs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from helpers.brief_records import record
from resfit.cli.board import Board
from resfit.executors.jobs import Job
from resfit.progress import Progress
from resfit.recipe import Recipe
from resfit.record import EpochPoint
from resfit.run import train


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to the terminal, without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)


def test_a_run_has_a_bar_with_the_time_left(terminal, tiny: Recipe, tmp_path, capsys) -> None:
    with Progress() as progress:
        train(tiny, out=tmp_path, observer=progress)
        assert progress.bar is not None
        assert progress.bar.tasks[0].completed == tiny.train.epochs
    text = shown(capsys)
    assert re.search(r"training .* 3/3 epochs 0:00:\d\d left 0:00:00", text)
    assert len(re.findall(r"epoch \d/3  loss", text)) == 3
    assert "about" not in text  # the bar says how long it takes


def test_elsewhere_the_lines_say_how_long_it_takes(tiny: Recipe, tmp_path, capsys) -> None:
    with Progress() as progress:
        train(tiny, out=tmp_path, observer=progress)
        assert progress.bar is None
    assert len(re.findall(r"epoch \d/3  loss .* about 0:\d\d left", shown(capsys))) == 3


def test_many_runs_have_a_live_table(terminal, tiny: Recipe, capsys) -> None:
    jobs = [Job(recipe=tiny, seed=seed) for seed in (0, 1)]
    point = EpochPoint(epoch=2, train_loss=1.0, train_accuracy=0.5, val_accuracy=0.625, lr=0.1, seconds=1.0)
    with Board(["tiny"]) as board:
        board.planned(jobs, [], "test")
        board.epoch_ended(jobs[0], point)
        under_way = shown(capsys)
        board.finished(jobs[0], replace(record("digits", 0, test=0.75), recipe="tiny"))
        board.failed(jobs[1], "no memory")
    assert re.search(r"tiny +0 of 2 +seed 0: epoch 2 of 3, 62.50 %", under_way)
    assert re.search(r"tiny +1 of 2, 1 failed +75.00 %", shown(capsys))
