"""The state that an interrupted run goes on from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from resfit.errors import BadInput
from resfit.files import write_atomic


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, on the CPU. Nothing in the file is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"nothing to resume ({path}): the run left no state; start it anew") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise BadInput(f"damaged checkpoint ({path}): {reason}; start the run anew") from None
    if not isinstance(state, dict):
        raise BadInput(f"not a checkpoint ({path}): start the run anew")
    return state
