"""Cache expensive uint8 arrays in memory-mapped files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from resfit.files import atomic_file

_UNUSED_SECONDS = 7 * 24 * 3600


def cached_array(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the uint8 array of `shape` made of `blocks` along its first axis, memory-mapped from `path`.

    `blocks` is consumed only if the file is missing or damaged. The file is an .npy file with a checksum at its end.
    The mapping is copy-on-write: changes to the array stay in this process.
    """
    array = _read(path, shape)
    if array is None:
        _write(path, shape, blocks)
        array = np.load(path, mmap_mode="c")
    with contextlib.suppress(OSError):
        os.utime(path)
    return array


def forget_unused(paths: Iterable[Path]) -> None:
    """Delete those files of the cache that were not used for a week: other machines may share the folder."""
    for path in paths:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _UNUSED_SECONDS:
                path.unlink()


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="c")
        with path.open("rb") as file:
            file.seek(array.offset + array.nbytes)
            checksum = file.read()
    except Exception:  # numpy raises various exceptions for a damaged header
        return None
    sound = array.shape == shape and array.dtype == np.uint8 and checksum == hashlib.blake2b(array).digest()
    return array if sound else None


def _write(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    # Written as a stream: a full disk then raises an error, while it would kill a process that writes to a mapping.
    checksum = hashlib.blake2b()
    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for block in blocks:
            content = block.tobytes()
            file.write(content)
            checksum.update(content)
        file.write(checksum.digest())
