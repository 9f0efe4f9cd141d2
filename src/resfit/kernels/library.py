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
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from resfit.files import cache_dir, write_atomic
from resfit.machine import processor

_HERE = Path(__file__).parent
_OPTIONS = ("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC")


@dataclass(frozen=True)
class Library:
    """A C++ file compiled for feature maps of one dtype.

    It `needs` the CPU features that it is compiled for, and is not used with another (`unless`) with which torch or
    another kernel is faster.
    """

    source: str
    dtype: torch.dtype
    needs: tuple[str, ...]
    unless: str | None = None


_AVX2 = ("avx2", "fma")
_AVX512 = ("avx512_bf16", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "bmi2", *_AVX2)
_AMX = ("amx_bf16", "amx_tile", *_AVX512)

LIBRARIES = {
    "winograd": Library("winograd.cpp", torch.bfloat16, _AVX512, unless="amx_bf16"),
    "amx_convolution": Library("amx_convolution.cpp", torch.bfloat16, _AMX),
    "norm": Library("norm.cpp", torch.bfloat16, _AVX512),
    "gate": Library("gate.cpp", torch.bfloat16, _AVX512),
    "pool": Library("pool.cpp", torch.bfloat16, _AVX512),
    "winograd_fp32": Library("winograd_fp32.cpp", torch.float32, _AVX2),
    "norm_fp32": Library("norm.cpp", torch.float32, _AVX2),
    "gate_fp32": Library("gate.cpp", torch.float32, _AVX2),
    "pool_fp32": Library("pool.cpp", torch.float32, _AVX2),
}

_LOADING = {name: threading.Lock() for name in LIBRARIES}  # one each: several compile at once

ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "silu": 3}  # same numbers as in activation.h


@functools.cache
def load_library(name: str) -> ctypes.CDLL | None:
    """Return the library of that name in `LIBRARIES`, from the cache or compiled now; None if that is impossible.

    If it exports `prepare`, which requests what it needs from the system, that must return 0.
    """
    with _LOADING[name]:
        return _loaded(name)


def variant(kernel: str, dtype: torch.dtype) -> str:
    """Return the name of a kernel's library for feature maps of a dtype."""
    return kernel if dtype == torch.bfloat16 else f"{kernel}_fp32"


def lanes(dtype: torch.dtype) -> int:
    """Return how many channels at a time the kernels for a dtype compute on this processor."""
    return 16 if dtype == torch.bfloat16 or "avx512f" in processor()[1] else 8


def _options(library: Library) -> tuple[str, ...]:
    features = processor()[1]
    if library.dtype == torch.bfloat16:
        tiles = ("-mamx-tile", "-mamx-bf16") if "amx_bf16" in features else ()
        return (*_OPTIONS, "-march=x86-64-v4", "-mavx512bf16", *tiles)
    return (*_OPTIONS, "-DFP32", "-mavx2", "-mfma", *(["-mavx512f"] if "avx512f" in features else []))


def _loaded(name: str) -> ctypes.CDLL | None:
    source, options = _HERE / LIBRARIES[name].source, _options(LIBRARIES[name])
    sources = [path.read_bytes() for path in (source, *sorted(_HERE.glob("*.h")))]
    identity = (sources, options, processor(), platform.libc_ver())
    try:
        cached = cache_dir() / f"{name}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
        if not _is_sound(cached):
            _compile(source, options, cached)
        loaded = ctypes.CDLL(str(cached))
        return loaded if not hasattr(loaded, "prepare") or loaded.prepare() == 0 else None
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError):  # no home folder; unbalanced quotes in CXX
        return None


def call(kernel: str, dtype: torch.dtype, function: str, *arguments: Tensor | int | None) -> None:
    """Call a kernel's function for maps of a dtype: pointers to tensor data, integers, then the number of threads."""
    getattr(load_library(variant(kernel, dtype)), function)(*map(_word, (*arguments, torch.get_num_threads())))


def _word(value: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_long:
    """Return a pointer to a tensor's data (null for None), or an integer as a C long."""
    if isinstance(value, int):
        return ctypes.c_long(value)
    if value is not None and not value.is_cpu:
        raise TypeError(f"a kernel was given a tensor on {value.device}")  # its address would not be one of memory
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def read_back(out: Tensor, added: Tensor | None, activation: str | None) -> Tensor | None:
    """Return what the gradient of activation(z + added) needs besides z: the output for ReLU, else `added`; or None."""
    if added is None or activation is None:
        return None
    return out if activation == "relu" else added


def two_readers(one: Tensor | None, other: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients from an output's two consumers, channels_last; a single one comes first, then None."""
    first, second = (one, other) if one is not None else (other, None)
    return channels_last(first), channels_last(second)


@overload
def channels_last(x: Tensor) -> Tensor: ...


@overload
def channels_last(x: Tensor | None) -> Tensor | None: ...


def channels_last(x: Tensor | None) -> Tensor | None:
    """Return a feature map in the order of memory that kernels read. A tensor saved for backward may come in another.

    `torch.autograd.graph.save_on_cpu`, for example, keeps the values of what it saves, but not their order.
    """
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _compile(source: Path, options: tuple[str, ...], to: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "")
    if not compiler:
        raise FileNotFoundError("no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.so"
        subprocess.run([*compiler, *options, "-o", made, source], capture_output=True, timeout=600, check=True)
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
