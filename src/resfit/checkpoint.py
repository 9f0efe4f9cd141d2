"""Checkpoint files from which an interrupted run resumes: write and read the newest state and the one before it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resfit.errors import BadInput
from resfit.files import write_atomic

STATE, PREVIOUS = "state.pt", "state.previous.pt"
_DIGEST_BYTES = hashlib.sha256().digest_size


class _Damaged(BadInput):
    """A checkpoint file that exists but cannot be used."""


def has_state(folder: Path) -> bool:
    """Whether `folder` contains a state to resume from."""
    return (folder / STATE).exists() or (folder / PREVIOUS).exists()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Atomically write tensors and plain values, preceded by their SHA-256; keep the previous state beside it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_atomic(path, hashlib.sha256(content).digest() + content, keep=path.with_name(PREVIOUS))


def newest_state(folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the newest intact state in `folder`.

    If the newest is damaged and the previous one is intact, rename the damaged one and report that through `tell`.
    A crash between the two renames of a save leaves only the previous state. Raises BadInput if no state is usable.
    """
    newest, previous = folder / STATE, folder / PREVIOUS
    if not previous.exists():
        return load_state(newest)
    if not newest.exists():
        return load_state(previous)
    try:
        return load_state(newest)
    except _Damaged:
        try:
            state = load_state(previous)
        except _Damaged:
            raise BadInput(f"damaged checkpoints ({newest} and {previous}): start the run again") from None
    aside = _set_aside(newest)
    tell(f"damaged checkpoint ({newest}): kept as {aside.name}; continuing from the previous one")
    return state


def load_state(path: Path) -> dict[str, Any]:
    """Load what `save_state` wrote, onto the CPU, without executing code from it; raise BadInput if it is unusable."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"nothing to resume ({path}): the run left no saved state; start it again") from None
    except OSError as error:
        raise BadInput(f"cannot read the state ({path}): {error.strerror}") from None
    digest, content = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise _Damaged(f"damaged checkpoint ({path}): its checksum is wrong; start the run again")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many exception types for foreign files
        raise _Damaged(f"not a checkpoint ({path}): {str(error)[:80]}; start the run again") from None
    if not isinstance(state, dict):
        raise _Damaged(f"not a checkpoint ({path}): start the run again")
    return state


def _set_aside(path: Path) -> Path:
    names = (path.with_name(f"state.damaged{n or ''}.pt") for n in range(1000))
    aside = next(name for name in names if not name.exists())
    return path.rename(aside)
