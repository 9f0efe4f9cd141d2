"""The JSON header of a model.safetensors, without torch: read it, check the file's digest and add a digest."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

DIGEST = "resfit.digest"
_LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Class names, and the mean and standard deviation of a network's inputs on the 0 to 1 scale.

    Divide logits by `temperature` for calibrated probabilities; None if there was no validation split to fit it on.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float | None = None


UNKNOWN = ModelInfo(classes=(), mean=(), std=())  # for a network that was not loaded from a model file


def read_header(content: bytes) -> dict[str, Any]:
    """Return the header of a safetensors file's bytes: a mapping per tensor, and "__metadata__".

    Raises ValueError if it is not a valid header, or if its digest does not match the rest of the file.
    """
    header, data = _split(content)
    digest = header.get("__metadata__", {}).get(DIGEST)
    if digest is not None and digest != _digest(header, data):
        raise ValueError("its checksum is wrong")
    return header


def with_digest(content: bytes) -> bytes:
    """Return the file's bytes with a SHA-256 of its header and tensors added to the metadata."""
    header, data = _split(content)
    metadata = {**header.get("__metadata__", {}), DIGEST: _digest(header, data)}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    text += b" " * (-len(text) % 8)  # align the tensors to eight bytes
    return struct.pack("<Q", len(text)) + text + data


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Split into header and tensors; the header's length precedes it as 8 bytes, little-endian."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > _LARGEST_HEADER:
            raise ValueError("its header is too long")
        header = json.loads(content[8 : 8 + length])
    except (struct.error, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is not a mapping")
    return header, content[8 + length :]


def _digest(header: dict[str, Any], data: bytes) -> str:
    metadata = {key: value for key, value in header.get("__metadata__", {}).items() if key != DIGEST}
    total = hashlib.sha256(json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode())
    total.update(data)
    return total.hexdigest()
