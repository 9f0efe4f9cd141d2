"""What a record says about where and how its run was made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resfit import environment as of_environment
from resfit.environment import environment


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/home/me/bin/resfit", "train", "a recipe.yaml"], "resfit train 'a recipe.yaml'"),
        (["/home/me/lib/resfit/__main__.py", "train", "digits"], "python -m resfit train digits"),
    ],
)
def test_the_command_is_one_that_can_be_typed_again(monkeypatch, arguments, command):
    monkeypatch.setattr(sys, "argv", arguments)
    assert environment(torch.device("cpu"))["command"] == command


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_is_that_of_the_sources_and_tells_of_further_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    source = tmp_path / ".venv" / "environment.py"
    source.parent.mkdir()
    source.write_text("first\n")
    monkeypatch.setattr(of_environment, "__file__", str(source))
    assert environment(torch.device("cpu"))["commit"] is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "a project that resfit is only installed in")
    assert environment(torch.device("cpu"))["commit"] is None
    git("add", ".venv/environment.py")
    git("commit", "-q", "-m", "its own sources")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert environment(torch.device("cpu"))["commit"] == commit
    source.write_text("second\n")
    assert environment(torch.device("cpu"))["commit"] == f"{commit}-dirty"
