"""Studies, searches and many runs: a signal ends them in order, with what is done on the disk and a line of advice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import yaml

from helpers.killing import begin
from helpers.tiny_recipe import TINY
from resfit.checkpoint import newest_state
from resfit.cli import main
from resfit.recipe import Recipe
from resfit.run import train
from resfit.studyrecord import read_study

LONG = {**TINY, "train": {**TINY["train"], "epochs": 10_000}}


def command(ready: Connection, words: list[str], told: str) -> None:
    """The command line, with its standard error in a file."""
    from resfit.cli import main

    sys.stderr = Path(told).open("w", buffering=1)  # noqa: SIM115
    sys.stdout = sys.stderr
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ready.send("ready")
    raise SystemExit(main(words))


def interrupted(
    words: list[str], number: signal.Signals, begun: Path | Callable[[], bool], tmp_path: Path
) -> tuple[int | None, str]:
    """Exit status and words of a command that gets a signal once `begun` exists, or says so."""
    has_begun = begun.exists if isinstance(begun, Path) else begun
    told = tmp_path / "told.txt"
    process, _ = begin(command, words, str(told))
    try:
        until = time.monotonic() + 120
        while not has_begun() and process.is_alive() and time.monotonic() < until:
            time.sleep(0.05)
        assert has_begun(), told.read_text()
        time.sleep(0.5)
        os.kill(process.pid or 0, number)
        process.join(60)
        return process.exitcode, told.read_text()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, "1"), (signal.SIGTERM, "1"), (signal.SIGTERM, "2")], ids=str
)
def test_a_study_saves_its_runs_and_leaves_its_page(number: signal.Signals, workers: str, tmp_path: Path) -> None:
    recipe, study, out = tmp_path / "tiny.yaml", tmp_path / "rates.yaml", tmp_path / "runs"
    recipe.write_text(yaml.safe_dump(LONG))
    points = {"a": {"optim.lr": 0.1}, "b": {"optim.lr": 0.01}}
    study.write_text(
        yaml.safe_dump({"name": "rates", "recipe": str(recipe), "runs": 1, "baseline": "a", "points": points})
    )
    words = ["study", str(study), "--workers", workers, "--out", str(out), "--train.checkpoint_minutes", "0.001"]
    run = out / "rates" / "a" / "0"
    status, told = interrupted(words, number, run / "state.pt", tmp_path)
    assert status == 128 + number, told
    assert told.splitlines()[-1] == f"interrupted ({number.name}): run the same command again to continue"
    assert (out / "rates" / "study.json").exists() and (out / "rates" / "report.html").exists()
    assert {point.name for point in read_study(out / "rates" / "study.json").points} == {"a", "b"}
    began = newest_state(run, print)["trainer"]
    assert began["epoch"] or began["under_way"], "what was trained until then is kept"


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")], ids=str)
def test_a_search_writes_down_its_trials(number: signal.Signals, workers: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from resfit.tunerecord import read_search

    recipe, space, out = tmp_path / "tiny.yaml", tmp_path / "space.yaml", tmp_path / "runs"
    recipe.write_text(yaml.safe_dump(LONG))
    space.write_text("optim.lr: {low: 1.0e-2, high: 1.0, log: true}\n")
    words = ["tune", str(recipe), "--space", str(space), "--workers", workers, "--out", str(out)]
    journal = out / "tiny-tune" / "journal.log"

    def under_way() -> bool:
        """Every worker draws its trial's rate."""
        return journal.exists() and journal.read_text().count('"param_name":"optim.lr"') == int(workers)

    status, told = interrupted(words, number, under_way, tmp_path)
    assert status == 128 + number, told
    assert told.splitlines()[-1] == f"interrupted ({number.name}): run the same command again to continue"
    search = read_search(out / "tiny-tune" / "tune.json")
    assert [trial.outcome for trial in search.trials] == ["failed"] * int(workers), "none is left as if it went on"


def children_of(pid: int) -> int:
    """How many processes the threads of a process began."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that ended
            found += len((task / "children").read_text().split())
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are counted in Linux's /proc")
@pytest.mark.parametrize("wait", [0.0, 0.5, 3.0])
def test_ctrl_c_ends_runs_in_processes_of_their_own_in_a_line(wait: float, tmp_path: Path) -> None:
    """A terminal sends it to the whole group, also to a process that still loads torch."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(LONG))
    words = ["train", str(recipe), "--runs", "2", "--workers", "2", "--out", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "resfit", *words], stdout=PIPE, stderr=STDOUT, text=True, start_new_session=True
    )
    until = time.monotonic() + 240
    while children_of(process.pid) < 3 and process.poll() is None and time.monotonic() < until:  # with the tracker
        time.sleep(0.02)
    assert children_of(process.pid) >= 3, "nothing began"
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 130, told
    assert "Traceback" not in told and "failed" not in told, told
    assert told.splitlines()[-1] == "interrupted (SIGINT): run the same command again to continue"


def test_runs_in_processes_of_their_own_save(tmp_path: Path) -> None:
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "runs"
    recipe.write_text(yaml.safe_dump(LONG))
    words = ["train", str(recipe), "--runs", "2", "--workers", "2", "--out", str(out)]
    status, told = interrupted(words, signal.SIGTERM, out / "tiny" / "1" / "state.pt", tmp_path)
    assert status == 143, told
    assert told.splitlines()[-1] == "interrupted (SIGTERM): run the same command again to continue"
    now = newest_state(out / "tiny" / "1", print)["trainer"]
    assert now["epoch"] or now["under_way"], "the state is of where it stopped"


def test_the_first_of_several_runs_also_names_the_others(tmp_path: Path) -> None:
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "runs"
    recipe.write_text(yaml.safe_dump(LONG))
    words = ["train", str(recipe), "--seed", "4", "--runs", "3", "--out", str(out)]
    status, told = interrupted(
        [*words, "--train.checkpoint_minutes", "0.001"], signal.SIGTERM, out / "tiny" / "4" / "state.pt", tmp_path
    )
    assert status == 143, told
    assert told.splitlines()[-1].endswith(
        f"--resume {out / 'tiny' / '4'}; then train the remaining runs with --seed 5 --runs 2"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_is_stopped_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.from_dict({**TINY, "train": {**TINY["train"], "epochs": 1}})
    train(recipe, out=tmp_path)
    before = sorted((tmp_path / "tiny" / "0").iterdir())
    monkeypatch.setattr("resfit.export._require_agreement", lambda *found: os.kill(os.getpid(), number))
    assert main(["export", str(tmp_path / "tiny" / "0"), "--format", "safetensors-fp32"]) == 128 + number
    assert f"interrupted ({number.name}): nothing was written" in capsys.readouterr().err
    assert sorted((tmp_path / "tiny" / "0").iterdir()) == before
