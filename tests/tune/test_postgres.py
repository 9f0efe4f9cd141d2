"""Searches whose trials lie in a real PostgreSQL server: two processes share one, and a killed one goes on."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from helpers.tiny_recipe import TINY
from resfit.cli import main
from resfit.tunerecord import read_search

optuna = pytest.importorskip("optuna")
pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'resfit[postgres]'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def programs() -> Path:
    """The folder of the server's programs, or a skipped test."""
    folders = [Path(found).resolve().parent for name in ("initdb", "postgres") if (found := shutil.which(name))]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_ctl")):
            return folder
    pytest.skip("no PostgreSQL server is here: install Debian's postgresql")


def as_server(folder: Path) -> dict[str, object]:
    """What `subprocess` needs for a server's process: it refuses to be root, so nobody owns its folder then."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a new and empty server on loopback, which asks for a password."""
    binaries, port = programs(), free_port()
    with TemporaryDirectory(prefix="resfit-postgres-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        owner = as_server(folder)

        def call(*words: str) -> None:
            command = [str(binaries / words[0]), "-D", str(folder / "data"), *words[1:]]
            log = (folder / "calls.log").open("a")
            done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, **owner)  # type: ignore[call-overload]
            assert done.returncode == 0, (folder / "calls.log").read_text()

        secret = folder / "password"
        secret.write_text("open sesame\n")
        secret.chmod(0o644)
        call("initdb", "-U", "resfit", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--no-locale")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-w", "-t", "240", "-o", options, "-l", str(folder / "server.log"), "start")
        try:
            yield f"postgresql://resfit:open%20sesame@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    recipe, space = tmp_path / "tiny.yaml", tmp_path / "space.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, "train": {**TINY["train"], "epochs": 6}}))
    space.write_text("optim.lr: {low: 1.0e-2, high: 1.0, log: true}\nspec.stages.*.channels: {choices: [8, 16]}\n")
    return ["tune", str(recipe), "--space", str(space)]


def begin(words: list[str], *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "resfit", *words, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def in_a_trial(study: Any, pid: int) -> bool:
    """Whether a process trains a trial."""
    time.sleep(0.05)
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    return any(trial.user_attrs.get("process", "").endswith(f":{pid}") for trial in trials)


def test_two_processes_share_a_search_and_a_killed_one_goes_on(server: str, words: list[str], tmp_path: Path) -> None:
    words += ["--storage", server, "--trials", "8"]
    folders = [tmp_path / "one", tmp_path / "two"]
    one, two = (begin(words, "--out", str(folder)) for folder in folders)  # at once, on an empty database
    assert one.stderr is not None
    for line in one.stderr:
        if "of 8 trained" in line:
            break
    else:
        pytest.fail("it ended without a trial of its own")
    study = optuna.load_study(study_name="tiny", storage=server.replace("postgresql", "postgresql+psycopg"))
    while not in_a_trial(study, one.pid):
        assert one.poll() is None, "it ended"
    os.kill(one.pid, signal.SIGKILL)
    one.wait()
    told, errors = two.communicate()
    assert two.returncode == 0, errors
    assert "7 of 8 trials were trained" in told, "the killed process's trial counts as under way for the other"

    done = begin(words, "--out", str(folders[0]))
    told, errors = done.communicate()
    assert done.returncode == 0, errors
    found = read_search(folders[0] / "tiny-tune")
    outcomes = [trial.outcome for trial in found.trials]
    assert (outcomes.count("failed"), outcomes.count("running"), found.trained) == (1, 0, 8)
    rates = [trial.values["optim.lr"] for trial in found.trials if trial.values]
    assert len(set(rates)) == len(rates), "no two draw the same"
    assert (folders[0] / "tiny-tune" / "best.yaml").exists()
    assert not (folders[0] / "tiny-tune" / "journal.log").exists()


def test_what_goes_wrong_is_one_line_without_the_password(
    server: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--trials", "1", "--epochs", "1", "--out", str(tmp_path)]
    wrong = server.replace("sesame", "barley")
    assert main([*words, "--storage", wrong]) == 2
    told = capsys.readouterr().err
    assert "cannot store trials (127.0.0.1:" in told and "password authentication failed" in told
    assert "barley" not in told
    assert main([*words, "--storage", server]) == 0
    (tmp_path / "tiny-tune" / "tune.json").unlink()  # a machine that has not seen the search
    assert main([*words, "--storage", server, "--optim.momentum", "0.5"]) == 2
    told = capsys.readouterr().err
    assert "another search already exists (127.0.0.1:" in told and "sesame" not in told
