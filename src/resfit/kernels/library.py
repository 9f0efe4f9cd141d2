"""Compile this package's C++ files into shared libraries, cached in the user's cache folder, and call them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch
from torch import Tensor

from resfit.files import cache_dir, write_atomic
from resfit.machine import processor

_HERE = Path(__file__).parent
_OPTIONS = ("-std=c++17", "-O3", "-march=x86-64-v4", "-mavx512bf16", "-fopenmp", "-shared", "-fPIC")
_MORE_OPTIONS = {"amx_bf16": ("-mamx-tile", "-mamx-bf16")}  # if the processor has the feature

_LOADING = threading.Lock()

ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "silu": 3}  # same numbers as in activation.h


@functools.cache
def load_library(name: str) -> ctypes.CDLL | None:
    """Return the C++ file `name` as a shared library, from the cache or compiled now; None if that is impossible.

    If it exports `prepare`, which requests what it needs from the system, that must return 0.
    """
    with _LOADING:
        return _loaded(_HERE / f"{name}.cpp")


def _loaded(source: Path) -> ctypes.CDLL | None:
    features = processor()[1]
    options = (*_OPTIONS, *(option for feature in features for option in _MORE_OPTIONS.get(feature, ())))
    sources = [path.read_bytes() for path in (source, *sorted(_HERE.glob("*.h")))]
    identity = (sources, options, processor(), platform.libc_ver())
    name = f"{source.stem}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
    try:
        cached = cache_dir() / name
        if not _is_sound(cached):
            _compile(source, options, cached)
        loaded = ctypes.CDLL(str(cached))
        return loaded if not hasattr(loaded, "prepare") or loaded.prepare() == 0 else None
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: no home folder
        return None


def call(name: str, function: str, *arguments: Tensor | int | None) -> None:
    """Call a library function with pointers to tensor data, integers, and finally the number of threads."""
    getattr(load_library(name), function)(*map(_word, (*arguments, torch.get_num_threads())))


def _word(value: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_long:
    """Return a pointer to a tensor's data (null for None), or an integer as a C long."""
    if isinstance(value, int):
        return ctypes.c_long(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def read_back(out: Tensor, added: Tensor | None, activation: str | None) -> Tensor | None:
    """Return what the gradient of activation(z + added) needs besides z: the output for ReLU, else `added`; or None."""
    if added is None or activation is None:
        return None
    return out if activation == "relu" else added


def two_readers(one: Tensor | None, other: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients from an output's two consumers, channels_last; a single one comes first, then None."""
    first, second = (one, other) if one is not None else (other, None)
    return _channels_last(first), _channels_last(second)


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _compile(source: Path, options: tuple[str, ...], to: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "")
    if not compiler:
        raise FileNotFoundError("no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.so"
        subprocess.run([*compiler, *options, "-o", made, source], capture_output=True, timeout=120, check=True)
        content = made.read_bytes()
    write_atomic(to, content + _checksum(content))


def _is_sound(path: Path) -> bool:
    """Return whether the library exists and its trailing checksum is right: loading a damaged one kills the process."""
    if not path.exists():
        return False
    content = path.read_bytes()
    size = hashlib.blake2b().digest_size
    return _checksum(content[:-size]) == content[-size:]


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()
