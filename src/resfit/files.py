"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from resfit.errors import RunFailed


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends well, and vanishes when it does not.

    A reader, or a crash at any moment, sees the old content or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> Path:
    """Replace `path` in one step and return it; raises RunFailed, the old one intact, where that fails."""
    data = content.encode() if isinstance(content, str) else content
    try:
        with atomic_file(path) as file:
            file.write(data)
    except OSError as error:
        raise RunFailed(
            f"cannot write {path} ({error.strerror}): make room, or name another place; earlier files are as they were"
        ) from None
    return path


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets a folder be synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
