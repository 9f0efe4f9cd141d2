"""The machine, software versions and command line that a run records, without passwords."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from resfit.machine import processor

# User name and password in a URL. The password may contain any character except whitespace, ? and #.
_PASSWORD = re.compile(
    r"(?<=://)[^\s/?#@]*:[^\s?#]*(?=@)|(?<=://)[^\s/?#@]+(?=@)|(?i:(?<=[?&]password=)|(?<=[?&]passwd=))[^&\s]*"
)


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, processor, GPU, threads, commit and command line as plain values."""
    cpu, features = processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.system(),
        "cpu": cpu,
        "cpu_features": list(features),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "command": command_line(),
    }


def command_line() -> str:
    """Return this process's command line without the program's folder and without passwords."""
    program = Path(sys.argv[0])
    begin = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*begin, *map(without_password, sys.argv[1:])])


def without_password(words: str) -> str:
    """Replace user names and passwords in URLs by ***."""
    return _PASSWORD.sub("***", words)


def without_places(command: str) -> str:
    """Replace each absolute path in a command by its last component."""
    return shlex.join(Path(word).name if word.startswith("/") else word for word in shlex.split(command))


def _commit() -> str | None:
    """The commit of the source checkout, or None if resfit was installed from a package.

    An installed package may lie in a folder that git ignores, such as .venv, of a repository.
    """
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return tracked and _git("describe", "--always", "--dirty", "--abbrev=12", "--match=")


def _git(*words: str) -> str | None:
    """Return what git says in this file's folder; None if it fails or is not installed."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
