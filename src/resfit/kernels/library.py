"""C++ files of this package as libraries, compiled once into the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from resfit.errors import RunFailed
from resfit.files import cache_dir, write_atomic
from resfit.processor import processor

_HERE = Path(__file__).parent
_OPTIONS = ("-std=c++17", "-O3", "-march=x86-64-v4", "-mavx512bf16", "-fopenmp", "-shared", "-fPIC")
_MORE_OPTIONS = {"amx_bf16": ("-mamx-tile", "-mamx-bf16")}  # where the processor has the feature

ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "silu": 3}  # as activation.h numbers them


@functools.cache
def load_library(name: str) -> ctypes.CDLL | None:
    """The C++ file of that name as a library, from the user's cache or compiled now; None where that cannot be done.

    Where it has a function `prepare`, that asks the system for what it needs: 0 where it is given.
    """
    source = _HERE / f"{name}.cpp"
    features = processor()[1]
    options = (*_OPTIONS, *(option for feature in features for option in _MORE_OPTIONS.get(feature, ())))
    sources = [path.read_bytes() for path in (source, *sorted(_HERE.glob("*.h")))]
    identity = (sources, options, processor())
    cached = cache_dir() / f"{name}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
    try:
        if not _is_sound(cached):
            _compile(source, options, cached)
        loaded = ctypes.CDLL(str(cached))
        return loaded if not hasattr(loaded, "prepare") or loaded.prepare() == 0 else None
    except (OSError, subprocess.SubprocessError, RunFailed):
        return None


def call(name: str, function: str, *arguments: ctypes.c_void_p | int) -> None:
    """A function of a library, which takes pointers, whole numbers and last the number of threads."""
    words = [
        ctypes.c_long(value) if isinstance(value, int) else value for value in (*arguments, torch.get_num_threads())
    ]
    getattr(load_library(name), function)(*words)


def pointer(tensor: Tensor | None, offset: int = 0) -> ctypes.c_void_p:
    """Where a tensor's numbers lie, `offset` of them further on; null without one."""
    if tensor is None:
        return ctypes.c_void_p(None)
    return ctypes.c_void_p(tensor.data_ptr() + offset * tensor.element_size())


def read_back(out: Tensor, added: Tensor | None, activation: str | None) -> Tensor | None:
    """What the gradient of activation(z + added) is made from besides z: a ReLU's output, or what was added."""
    if added is None or activation is None:
        return None
    return out if activation == "relu" else added


def two_readers(one: Tensor | None, other: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a map's two readers, channels_last; where only one reads it, that one's and None."""
    first, second = (one, other) if one is not None else (other, None)
    return _channels_last(first), _channels_last(second)


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _compile(source: Path, options: tuple[str, ...], to: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.so"
        subprocess.run([compiler, *options, "-o", made, source], capture_output=True, timeout=120, check=True)
        content = made.read_bytes()
    write_atomic(to, content + _checksum(content))


def _is_sound(path: Path) -> bool:
    """Whether there is a library whose checksum, at its end, agrees: a process that loads a damaged one is killed."""
    if not path.exists():
        return False
    content = path.read_bytes()
    size = hashlib.blake2b().digest_size
    return _checksum(content[:-size]) == content[-size:]


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()
