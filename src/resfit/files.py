"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from resfit.errors import BadInput, RunFailed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def cache_dir() -> Path:
    """The user's cache folder for resfit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resfit"


def sha256(path: Path) -> str:
    """A file's SHA-256, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder`, made where it is missing, for this process; raises BadInput where another process holds it.

    The system lets go of it when the process ends, however that comes. Nothing is held where it cannot lock folders
    (Windows, some network file systems). Folders that were made for it and are empty at the end are removed.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    try:
        _lock(folder, held)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                for place in made or [folder]:
                    place.rmdir()  # only an empty one goes
    finally:
        os.close(held)


def _lock(folder: Path, held: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(
            f"another process is at work in this run folder ({folder}): wait for it, stop it, or give another --out"
        ) from None
    except OSError:  # a file system without locks
        return


@contextmanager
def atomic_file(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends well, and vanishes when it does not.

    A reader, or a crash at any moment, sees the old content or the new one. With `keep` the old file becomes that one;
    a crash may then leave `keep` alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str, keep: Path | None = None) -> Path:
    """Replace `path` in one step and return it; raises RunFailed, the old one intact, where that fails."""
    data = content.encode() if isinstance(content, str) else content
    try:
        with atomic_file(path, keep) as file:
            file.write(data)
    except OSError as error:
        raise _cannot_write(path, error) from None
    return path


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; raises RunFailed where that fails."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from None


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed within a write have left in `folder`."""
    for path in folder.glob(".*.part"):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not is_alive(int(process)):
            path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _cannot_write(path: Path, error: OSError) -> RunFailed:
    return RunFailed(
        f"cannot write {path} ({error.strerror}): make room, or name another place; earlier files are as they were"
    )


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets a folder be synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
