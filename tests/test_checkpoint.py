"""A file is replaced whole or not at all; a damaged or hostile one is refused in one line, and nothing in it is run."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch

from resfit.checkpoint import load_state, save_state
from resfit.errors import BadInput, RunFailed
from resfit.files import write_atomic

STATE = {"epoch": 3, "weights": {"w": torch.arange(2000.0)}, "rng": torch.get_rng_state(), "best": None, "log": ["a"]}


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def complaint(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_state(path)
    line = str(caught.value)
    assert path.name in line
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize("content", ["text, ü\n", b"\0bytes\xff", ""])
def test_content_arrives_whole_in_folders_that_are_made_for_it(tmp_path, content):
    path = tmp_path / "new" / "folders" / "file"
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    write_atomic(path, "second")
    assert path.read_text() == "second"
    assert names(path.parent) == ["file"]


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    assert write_atomic(tmp_path / "file", f"a {name}").read_bytes() == b"a caf\\udce9"


def test_a_written_file_has_the_rights_that_the_user_wants_for_new_ones(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment, error):
    path = tmp_path / "state.pt"
    write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if moment == "fsync" else (Path, "replace")), fail)
    with pytest.raises((RunFailed, KeyboardInterrupt)) as caught:
        write_atomic(path, "new" * 1000)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state.pt"]
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFailed, match=r"cannot write .*state\.pt"):
        write_atomic(tmp_path / "file" / "state.pt", "x")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunFailed, match="Permission denied"):
            write_atomic(tmp_path / "state.pt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    save_state(tmp_path / "state.pt", STATE)
    assert same(load_state(tmp_path / "state.pt"), STATE)


def test_a_missing_state_is_said_to_be_missing(tmp_path):
    assert "nothing to resume" in complaint(tmp_path / "state.pt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_state_is_refused(tmp_path, share):
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "damaged checkpoint" in complaint(path)


def test_a_flipped_bit_is_refused_or_harmless_wherever_it_is(tmp_path):
    """Most of the file is weights: a bit there changes the run in silence unless a checksum tells."""
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert same(load_state(path), STATE), f"byte {place} of {len(whole)}"
        except BadInput as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 30


class Hostile:
    """A pickle that makes a file when it is loaded the careless way."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def signed(path: Path) -> bytes:
    """Put the right checksum ahead of a file, as whoever wishes harm can; its content as it was."""
    content = path.read_bytes()
    path.write_bytes(hashlib.sha256(content).digest() + content)
    return content


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))])
def test_code_in_a_state_never_runs(tmp_path, save):
    trace, path = tmp_path / "trace", tmp_path / "state.pt"
    save({"epoch": Hostile(trace)}, path)
    content = signed(path)
    assert "not a checkpoint" in complaint(path)
    assert not trace.exists()
    path.write_bytes(content)
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(content)
    assert trace.exists()  # it would have


def test_what_is_no_state_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "state.pt")
    signed(tmp_path / "state.pt")
    assert "not a checkpoint" in complaint(tmp_path / "state.pt")
    (tmp_path / "state.pt").unlink()
    (tmp_path / "state.pt").mkdir()
    complaint(tmp_path / "state.pt")


def test_the_whole_content_is_on_the_disk_before_a_file_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def watched(descriptor: int) -> None:
        kept = os.fstat(descriptor)
        synced.append("folder" if stat.S_ISDIR(kept.st_mode) else kept.st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(tmp_path / "file", b"x" * 100)
    assert synced == [100, "folder"]
