"""The JSON header of a model.safetensors, read without torch: what it says of the network, and the file's digest."""

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
    """What a network's user has to know: class names, and the mean and deviation of its inputs on the 0 to 1 scale.

    Logits are divided by `temperature` for calibrated probabilities; None where no validation split fitted one.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float | None = None


UNKNOWN = ModelInfo(classes=(), mean=(), std=())  # of a network that came from no model file


def read_header(content: bytes) -> dict[str, Any]:
    """The header of a safetensors file's bytes: a mapping a tensor, and "__metadata__".

    Raises ValueError where it is none, or where a digest in it does not agree with the rest.
    """
    header, data = _split(content)
    digest = header.get("__metadata__", {}).get(DIGEST)
    if digest is not None and digest != _digest(header, data):
        raise ValueError("its checksum is wrong")
    return header


def with_digest(content: bytes) -> bytes:
    """The file with a SHA-256 of its header and tensors in its metadata."""
    header, data = _split(content)
    metadata = {**header.get("__metadata__", {}), DIGEST: _digest(header, data)}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text + data


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, whose length stands ahead of it as 8 bytes, little-endian; and the tensors."""
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
