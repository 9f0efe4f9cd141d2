"""Winograd's convolutions against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.kernel_checks import difference, needs
from resfit.kernels.winograd import WinogradConvolution

runs_here = needs("winograd")
# Rounding the operands once they are transformed, and the result: a few times 2^-9.
CLOSE = 0.008


def inputs(
    n: int, height: int, width: int, channels: int, outputs: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, height, width, generator=generator).bfloat16()
    filters = torch.randn(outputs, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    gradient = torch.randn(n, outputs, height, width, generator=generator).bfloat16()
    return images, filters, gradient


SHAPES = [
    (2, 8, 8, 64, 64),
    (3, 7, 9, 32, 48),  # odd sides; a panel that is not full
    (1, 1, 1, 16, 16),
    (2, 5, 5, 80, 144),  # more than one panel, the last one narrow, in both directions
    (40, 6, 6, 128, 64),  # more tiles than a block of the filters' gradient holds, and a block cut short
    (1, 34, 2, 32, 512),
]


@runs_here
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_torchs_convolution_forward_and_back(shape: tuple[int, ...]) -> None:
    images, filters, gradient = inputs(*shape)
    images.requires_grad_()
    filters.requires_grad_()
    exact = F.conv2d(images.float(), filters, padding=1)
    of_images, of_filters = torch.autograd.grad(exact, (images, filters), gradient.float())
    out = WinogradConvolution.apply(images, filters)
    found_images, found_filters = torch.autograd.grad(out, (images, filters), gradient)
    assert out.dtype == found_images.dtype == torch.bfloat16 and found_filters.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert difference(out, exact) < CLOSE
    assert difference(found_images, of_images.float()) < CLOSE
    assert difference(found_filters, of_filters) < CLOSE


@runs_here
def test_whole_numbers_come_out_exact() -> None:
    """Small whole numbers are exact in bf16, transformed ones as well where filters are multiples of four."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-3, 4, (3, 32, 9, 9), generator=generator).bfloat16()
    filters = 4.0 * torch.randint(-1, 2, (16, 32, 3, 3), generator=generator)
    wanted = F.conv2d(images.float(), filters, padding=1).bfloat16()
    assert torch.equal(WinogradConvolution.apply(images, filters), wanted)


@runs_here
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_layout_gives_the_same(layout: torch.memory_format) -> None:
    images, filters, gradient = inputs(4, 8, 8, 32, 64)
    results = []
    for form in (torch.contiguous_format, layout):
        x = images.clone(memory_format=form).requires_grad_()
        w = filters.clone(memory_format=form).requires_grad_()
        out = WinogradConvolution.apply(x, w)
        results.append((out, *torch.autograd.grad(out, (x, w), gradient.contiguous(memory_format=form))))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@runs_here
def test_threads_do_not_change_a_bit() -> None:
    images, filters, gradient = inputs(30, 8, 8, 64, 128)
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


@runs_here
def test_what_is_not_finite_stays_so() -> None:
    images, filters, _ = inputs(1, 8, 8, 32, 32)
    images[0, 3, 4, 4] = float("nan")
    assert WinogradConvolution.apply(images, filters).isnan().any()
