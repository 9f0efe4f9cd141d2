"""The state that an interrupted run goes on from."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from resfit.errors import BadInput
from resfit.files import write_atomic

_DIGEST_BYTES = hashlib.sha256().digest_size


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values behind their SHA-256, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_atomic(path, hashlib.sha256(content).digest() + content)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, on the CPU. Nothing in the file is run, and nothing of a damaged one is used."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"nothing to resume ({path}): the run left no state; start it anew") from None
    except OSError as error:
        raise BadInput(f"cannot read the state ({path}): {error.strerror}") from None
    digest, content = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise BadInput(f"damaged checkpoint ({path}): its checksum is wrong; start the run anew")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is not its own
        raise BadInput(f"not a checkpoint ({path}): {str(error)[:80]}; start the run anew") from None
    if not isinstance(state, dict):
        raise BadInput(f"not a checkpoint ({path}): start the run anew")
    return state
