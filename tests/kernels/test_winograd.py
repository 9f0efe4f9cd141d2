"""Winograd's convolutions against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.kernel_checks import difference, dtypes
from resfit.kernels.winograd import WinogradConvolution

pytestmark = pytest.mark.parametrize("dtype", dtypes("winograd"), ids=str)
# Of bf16, the operands once they are transformed are rounded, and the result: a few times 2^-9. In fp32, larger numbers
# cancel.
CLOSE = {torch.bfloat16: 0.008, torch.float32: 1e-5}


def inputs(
    dtype: torch.dtype, n: int, height: int, width: int, channels: int, outputs: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, height, width, generator=generator).to(dtype)
    filters = torch.randn(outputs, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    gradient = torch.randn(n, outputs, height, width, generator=generator).to(dtype)
    return images, filters, gradient


SHAPES = [
    (2, 8, 8, 64, 64),
    (3, 7, 9, 32, 48),  # odd sides; a panel that is not full
    (1, 1, 1, 16, 16),
    (2, 5, 5, 80, 144),  # more than one panel, the last one narrow, in both directions
    (40, 6, 6, 128, 64),  # more tiles than a block of the filters' gradient holds, and a block cut short
    (1, 34, 2, 32, 512),
    (37, 5, 5, 32, 32),  # maps that share tiles, a few of them missing at the end
    (50, 2, 10, 16, 32),
    (29, 3, 14, 32, 16),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_torchs_convolution_forward_and_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    images, filters, gradient = inputs(dtype, *shape)
    images.requires_grad_()
    filters.requires_grad_()
    exact = F.conv2d(images.float(), filters, padding=1)
    of_images, of_filters = torch.autograd.grad(exact, (images, filters), gradient.float())
    out = WinogradConvolution.apply(images, filters)
    found_images, found_filters = torch.autograd.grad(out, (images, filters), gradient)
    assert out.dtype == found_images.dtype == dtype and found_filters.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert difference(out, exact) < CLOSE[dtype]
    assert difference(found_images, of_images.float()) < CLOSE[dtype]
    assert difference(found_filters, of_filters) < CLOSE[dtype]


def test_whole_numbers_come_out_exact(dtype: torch.dtype) -> None:
    """Small whole numbers are exact, transformed ones as well where filters are multiples of 4 (bf16) or 24 * 24."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-3, 4, (3, 32, 9, 9), generator=generator).to(dtype)
    filters = (4.0 if dtype == torch.bfloat16 else 576.0) * torch.randint(-1, 2, (16, 32, 3, 3), generator=generator)
    wanted = F.conv2d(images.float(), filters, padding=1).to(dtype)
    assert torch.equal(WinogradConvolution.apply(images, filters), wanted)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_layout_gives_the_same(dtype: torch.dtype, layout: torch.memory_format) -> None:
    images, filters, gradient = inputs(dtype, 4, 8, 8, 32, 64)
    results = []
    for form in (torch.contiguous_format, layout):
        x = images.clone(memory_format=form).requires_grad_()
        w = filters.clone(memory_format=form).requires_grad_()
        out = WinogradConvolution.apply(x, w)
        results.append((out, *torch.autograd.grad(out, (x, w), gradient.contiguous(memory_format=form))))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("side", [8, 5])
def test_threads_do_not_change_a_bit(dtype: torch.dtype, side: int) -> None:
    images, filters, gradient = inputs(dtype, 30, side, side, 64, 128)
    images.requires_grad_()
    filters.requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = WinogradConvolution.apply(images, filters)
            results.append((out, *torch.autograd.grad(out, (images, filters), gradient)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    images, filters, _ = inputs(dtype, 1, 8, 8, 32, 32)
    images[0, 3, 4, 4] = float("nan")
    assert WinogradConvolution.apply(images, filters).isnan().any()
