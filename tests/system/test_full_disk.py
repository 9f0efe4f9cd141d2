"""A disk that is full, read-only or gone: one clear line, and what was written before is as it was."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.runs import FOLDER, NEVER, Watcher, left_by
from resfit import runner
from resfit.checkpoint import load_state, newest_state, save_state
from resfit.errors import RunFailed
from resfit.recipe import Recipe
from resfit.run import train

SMALL, LARGE = {"epoch": 1}, {"epoch": 2, "text": "x" * 500_000}


@pytest.fixture
def often(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of a run that saves after each step."""
    monkeypatch.setattr(runner, "_SAVES_SHARE", 1e9)
    return tiny.replace({"train.epochs": 2, "train.batch_size": 512, "train.checkpoint_minutes": 1e-9})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: it takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: a quota that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


def test_a_state_beyond_the_quota_leaves_the_earlier_ones(tmp_path: Path) -> None:
    for number in (0, 1):
        save_state(tmp_path / "state.pt", {"epoch": number})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        largest_file(100_000),
        pytest.raises(RunFailed, match=r"^cannot write .*state.pt \(File too large\): free some space"),
    ):
        save_state(tmp_path / "state.pt", LARGE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_on_a_full_disk_stops_and_goes_on_where_there_is_room(often: Recipe, disk: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"^cannot write .* \(No space left on device\): free some space.*unchanged$"):
        train(often, out=disk, observer=Watcher((1, 0.67), lambda: fill(disk)))
    newest_state(disk / FOLDER, lambda line: pytest.fail(line))
    assert not list((disk / FOLDER).glob(".*"))
    (disk / "filler").unlink()
    train(often, out=disk, resume=True)
    train(often, out=tmp_path / "whole")
    assert left_by(disk / FOLDER) == left_by(tmp_path / "whole" / FOLDER)


def test_a_disk_that_turns_read_only_is_named(often: Recipe, disk: Path) -> None:
    def protect() -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    with pytest.raises(RunFailed, match=r"^cannot write .*state.pt \(Read-only file system\)"):
        train(often, out=disk, observer=Watcher((1, 0.67), protect))
    assert load_state(disk / FOLDER / "state.pt")["trainer"]["epoch"] == 0


@pytest.mark.parametrize("done", [0.67, None], ids=["after a step", "at an epoch's end"])
def test_a_run_folder_that_is_deleted_is_named_and_not_made_again(
    often: Recipe, tmp_path: Path, done: float | None
) -> None:
    folder = tmp_path / FOLDER
    with pytest.raises(RunFailed, match=rf"^the run folder no longer exists \({folder}\): start the run again$"):
        train(often, out=tmp_path, observer=Watcher((1, done), lambda: shutil.rmtree(folder)))
    assert not folder.exists()


def test_metrics_that_cannot_be_written_are_named(often: Recipe, tmp_path: Path) -> None:
    calls = []

    class Remover(Watcher):
        def stepped(self, epoch: int, done: float) -> None:
            if done == 1.0 and not calls:
                calls.append(epoch)
                (tmp_path / FOLDER / "metrics.jsonl").unlink()
                (tmp_path / FOLDER / "metrics.jsonl").mkdir()

    with pytest.raises(RunFailed, match=r"^cannot write .*metrics.jsonl \(Is a directory\)"):
        train(often, out=tmp_path, observer=Remover(NEVER, lambda: None))
    newest_state(tmp_path / FOLDER, lambda line: pytest.fail(line))
