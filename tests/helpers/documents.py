"""The fenced blocks of the project's documents, and running them as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers.places import ROOT

_FENCE = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file that it is (title), and its text."""

    language: str
    title: str
    text: str


def blocks(document: str) -> list[Block]:
    """The blocks of a document, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [Block(language, title, code) for language, title, code in _FENCE.findall(text)]


def untagged(document: str) -> list[str]:
    """The fences of a document that open a block without saying of what language it is."""
    fences = re.findall(r"^```.*$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    return [fence for fence in fences[::2] if fence == "```"]


def commands(document: str) -> list[str]:
    """Every `resfit ...` of a document, in blocks and in running text, without what follows it in the shell."""
    text = (ROOT / document).read_text(encoding="utf-8")
    inline = re.findall(r"`(resfit [^`]+)`", _FENCE.sub("", text).replace("\n", " "))
    shell = [block.text.replace("\\\n", " ") for block in blocks(document) if block.language == "sh"]
    lines = [line for text in shell for line in text.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|#", line)]
    return [*inline, *(part for part in parts if part.startswith("resfit "))]


def run(block: Block, folder: Path, source: Path = ROOT / "src") -> str:
    """Run a block of Python or of shell commands in `folder`, with the package at `source`; what it printed."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    (tools / "resfit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m resfit "$@"\n')
    (tools / "resfit").chmod(0o755)
    words = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    environment = {**os.environ, "PYTHONPATH": str(source), "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run([*words, block.text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def apply(block: Block, root: Path) -> None:
    """Make the change that a titled block shows: a whole new file, or in a diff the lines to add and take out."""
    file = root / block.title
    if block.language != "diff":
        assert not file.exists(), f"{block.title} exists already"
        file.write_text(block.text)
        return
    lines = block.text.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    text = file.read_text(encoding="utf-8")
    found = text.count("\n" + before)
    assert found == 1, f"{block.title} has these lines {found} times:\n{before}"
    file.write_text(text.replace("\n" + before, "\n" + after))
