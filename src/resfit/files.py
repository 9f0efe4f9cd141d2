"""File utilities: atomic writes, a lock on a folder, SHA-256 and the cache folder."""

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
    """Return the user's cache folder for resfit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resfit"


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock `folder`, created if missing, for this process; raise BadInput if another process has locked it.

    The system releases the lock when the process ends for any reason. There is no lock where folders cannot be locked
    (Windows, some network file systems). At the end, `folder` and the parents created for it are removed if empty.
    Raises RunFailed if the folder cannot be created or opened.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    held = _opened(folder)
    while not _lock(folder, held):
        os.close(held)
        held = _opened(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for place in made or [folder]:
                place.rmdir()  # fails unless empty
        os.close(held)


def _opened(folder: Path) -> int:
    """Return a descriptor of the folder, which is created if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(folder, error) from None


def _lock(folder: Path, held: int) -> bool:
    """Lock the open folder; return False if another process removed it before it was locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(held), folder.stat())
    except FileNotFoundError:
        return False
    except BlockingIOError:
        os.close(held)
        raise BadInput(
            f"another process is using this run folder ({folder}): wait for it, stop it, or give another --out"
        ) from None
    except OSError:  # the file system has no locks
        return True


@contextmanager
def atomic_file(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block succeeds and is deleted when it raises.

    Readers see either the old content or the new one, also after a crash at any moment. With `keep`, the old file is
    renamed to `keep` first; a crash in between leaves only `keep`.
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
    """Write `path` atomically and return it; on failure raise RunFailed and leave the old content intact.

    Text is written as UTF-8; bytes of file names that are not valid UTF-8 become backslash escapes.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with atomic_file(path, keep) as file:
            file.write(data)
    except OSError as error:
        raise _cannot_write(path, error) from None
    return path


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; raise RunFailed if that fails."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from None


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in `folder` in the middle of a write."""
    for path in folder.glob(".*.part"):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not is_alive(int(process)):
            path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process with this id is running on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _cannot_write(path: Path, error: OSError) -> RunFailed:
    return RunFailed(
        f"cannot write {path} ({error.strerror}): free some space, or choose another place; earlier files are unchanged"
    )


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system can sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
