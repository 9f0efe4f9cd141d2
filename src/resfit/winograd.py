"""3x3 convolutions in bf16 by Winograd's method, on processors where this is faster than direct ones.

Winograd's F(2x2, 3x3) takes 4 products for each output and pair of channels instead of 9, but reads and writes more.
That pays on AVX-512 with bf16; AMX multiplies so fast that memory would decide. winograd.cpp does it; the system's
C++ compiler makes it into a library once. Where there is none, convolutions are direct. RESFIT_WINOGRAD=0 turns it off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resfit.errors import RunFailed
from resfit.files import cache_dir, write_atomic
from resfit.processor import processor

_SOURCE = Path(__file__).with_name("winograd.cpp")
_COMPILE = ("-std=c++17", "-O3", "-march=x86-64-v4", "-mavx512bf16", "-fopenmp", "-shared", "-fPIC")
_POINTS = 16  # of a tile of 4 x 4 pixels
_FEWEST_CHANNELS, _CHANNELS_MULTIPLE = 32, 16
_FEWEST_TILES = 128  # below, transforming the filters costs more than is saved

_in_use = False


@contextmanager
def winograd_convolutions() -> Iterator[None]:
    """Within the block, every `Conv2d` that can be computed so is, where the processor and its tools allow it."""
    global _in_use
    before, _in_use = _in_use, is_suited() and library() is not None
    try:
        yield
    finally:
        _in_use = before


def in_use() -> bool:
    """Whether convolutions are computed by Winograd's method at present."""
    return _in_use


def is_suited() -> bool:
    """Whether Winograd's method is faster on this processor than direct convolutions, and not turned off."""
    features = processor()[1]
    return "avx512_bf16" in features and "amx_bf16" not in features and os.environ.get("RESFIT_WINOGRAD") != "0"


@functools.cache
def library() -> ctypes.CDLL | None:
    """winograd.cpp as a library, from the user's cache or compiled now; None where that cannot be done."""
    source = _SOURCE.read_bytes()
    digest = hashlib.sha256(repr((source, _COMPILE, processor())).encode()).hexdigest()[:16]
    cached = cache_dir() / f"winograd-{digest}.so"
    try:
        if not _is_sound(cached):
            _compile(cached)
        return ctypes.CDLL(str(cached))
    except (OSError, subprocess.SubprocessError, RunFailed):
        return None


def _compile(to: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "winograd.so"
        subprocess.run([compiler, *_COMPILE, "-o", made, _SOURCE], capture_output=True, timeout=120, check=True)
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


class Conv2d(nn.Conv2d):
    """nn.Conv2d that takes Winograd's method within `winograd_convolutions()`, under bf16 autocast on a CPU."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        if not (_in_use and self._is_suited(images)):
            return super().forward(images)
        out: Tensor = WinogradConvolution.apply(images.bfloat16(), self.weight)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _is_suited(self, images: Tensor) -> bool:
        n, channels, height, width = images.shape
        return (
            self.kernel_size == (3, 3)
            and self.stride == self.padding == self.dilation == (1, 1)
            and self.groups == 1
            and not (channels % _CHANNELS_MULTIPLE or self.out_channels % _CHANNELS_MULTIPLE)
            and min(channels, self.out_channels) >= _FEWEST_CHANNELS
            and n * -(-height // 2) * -(-width // 2) >= _FEWEST_TILES
            and images.device.type == "cpu"
            and self.weight.dtype == torch.float32
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and not torch.compiler.is_compiling()
        )


class WinogradConvolution(torch.autograd.Function):
    """3x3 convolution, stride 1, padding 1 (Lavin and Gray 2016).

    images bf16 [N, C, H, W] and filters float [K, C, 3, 3] -> bf16 [N, K, H, W], channels_last. C and K are multiples
    of 16; operands are rounded to bf16 once transformed, and sums are fp32.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor) -> Tensor:
        """The convolution."""
        images = images.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(images, filters)
        return _convolve(images, filters, filters.stride(), len(filters))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of images and filters, where they are wanted."""
        images, filters = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_images = of_filters = None
        if ctx.needs_input_grad[0]:  # a convolution with the filters turned round, inputs and outputs exchanged
            outputs, inputs, row, column = filters.stride()
            turned = (inputs, outputs, -row, -column)
            of_images = _convolve(gradient, filters, turned, images.shape[1], offset=2 * row + 2 * column)
        if ctx.needs_input_grad[1]:
            n, channels, height, width = images.shape
            of_filters = torch.empty_like(filters)
            operands = (_pointer(images), _pointer(gradient), _pointer(of_filters))
            sizes = (n, height, width, channels, len(filters))
            _call("filter_gradient", *operands, *of_filters.stride(), *sizes)
        return of_images, of_filters


def _convolve(images: Tensor, filters: Tensor, strides: tuple[int, ...], outputs: int, offset: int = 0) -> Tensor:
    """Convolve with the filters that begin at an offset and have these strides: outputs, inputs, rows, columns."""
    n, inputs, height, width = images.shape
    points = torch.empty(_POINTS * inputs * outputs, dtype=torch.bfloat16)
    _call("transform_filters", _pointer(filters, offset), *strides, _pointer(points), inputs, outputs)
    out = torch.empty((n, outputs, height, width), dtype=torch.bfloat16, memory_format=torch.channels_last)
    _call("convolve", _pointer(images), _pointer(points), _pointer(out), n, height, width, inputs, outputs)
    return out


def _pointer(tensor: Tensor, offset: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() + offset * tensor.element_size())


def _call(name: str, *arguments: ctypes.c_void_p | int) -> None:
    """A function of the library, which takes pointers, whole numbers and last the number of threads."""
    words = [
        ctypes.c_long(value) if isinstance(value, int) else value for value in (*arguments, torch.get_num_threads())
    ]
    getattr(library(), name)(*words)
