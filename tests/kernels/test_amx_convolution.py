"""Convolutions by AMX and their gradients against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers.kernel_checks import difference, needs
from resfit.kernels.amx_convolution import AmxConvolution

pytestmark = needs("amx_convolution")

SHAPES = [  # images, height, width, channels, outputs, side of the filters, stride
    (2, 8, 8, 64, 64, 3, 1),
    (1, 1, 1, 32, 32, 3, 1),
    (3, 7, 9, 32, 96, 3, 1),  # odd sides, and a group of images that is not full
    (70, 4, 4, 64, 32, 3, 1),  # more than one group
    (5, 3, 3, 96, 160, 3, 1),
    (33, 6, 6, 640, 96, 3, 1),
    (1, 33, 34, 32, 64, 3, 1),
    (2, 8, 8, 64, 64, 3, 2),
    (3, 7, 9, 32, 64, 3, 2),
    (4, 9, 12, 32, 64, 3, 3),
    (3, 8, 8, 64, 96, 1, 1),
    (3, 9, 8, 64, 96, 1, 2),
    (9, 8, 6, 32, 64, 5, 2),
    (16, 1, 1, 64, 32, 3, 1),
    (2, 70, 66, 64, 32, 3, 1),  # a map that is laid out in parts
    (2, 70, 67, 64, 96, 3, 2),
    (40, 5, 7, 24, 40, 3, 1),  # channels that do not fill their tiles, a second half of them empty
    (70, 4, 4, 72, 100, 3, 1),
    (17, 15, 16, 32, 64, 3, 2),
    (20, 8, 8, 64, 96, 5, 1),
    (33, 2, 3, 96, 64, 7, 1),  # filters larger than the map
    (16, 9, 8, 32, 32, 3, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_torchs_gradients(shape: tuple[int, ...]) -> None:
    n, height, width, channels, outputs, side, stride = shape
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, channels, height, width, generator=generator).bfloat16().requires_grad_()
    filters = torch.randn(outputs, channels, side, side, generator=generator) / (side**2 * channels) ** 0.5
    filters.requires_grad_()
    rounded = filters.detach().bfloat16().double().requires_grad_()
    exact = F.conv2d(images.double(), rounded, stride=stride, padding=side // 2)
    gradient = torch.randn(exact.shape, generator=generator).bfloat16()
    of_images, of_filters = torch.autograd.grad(exact, (images, rounded), gradient.double())
    out = AmxConvolution.apply(images, filters, stride)
    found_images, found_filters = torch.autograd.grad(out, (images, filters), gradient)
    assert out.dtype == found_images.dtype == torch.bfloat16 and found_filters.dtype == torch.float32
    assert difference(out, exact) < 0.003 and difference(found_images, of_images) < 0.004  # their own rounding
    assert difference(found_filters, of_filters) < 2e-6  # products of bf16 numbers are exact in fp32


def test_whole_numbers_come_out_exact_whatever_the_memory_layout_and_the_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-1, 2, (40, 32, 8, 8), generator=generator).bfloat16()
    filters = torch.randint(-1, 2, (64, 32, 3, 3), generator=generator).float()
    gradient = torch.randint(-1, 2, (40, 64, 8, 8), generator=generator).bfloat16()
    images[:, :, 0] *= 4
    exact = (images.float().requires_grad_(), filters.clone().requires_grad_())
    maps = F.conv2d(*exact, padding=1)
    wanted = (maps, *torch.autograd.grad(maps, exact, gradient.float()))
    assert max(float(tensor.detach().abs().max()) for tensor in wanted[:2]) <= 256  # bf16 holds them as they are
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            for form in (torch.contiguous_format, torch.channels_last):
                torch.set_num_threads(threads)
                given = [tensor.clone(memory_format=form).requires_grad_() for tensor in (images, filters)]
                out = AmxConvolution.apply(*given, 1)
                found = (out, *torch.autograd.grad(out, given, gradient.contiguous(memory_format=form)))
                assert all(torch.equal(one.float(), other) for one, other in zip(found, wanted, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 16])
def test_what_is_not_finite_stays_so(n: int) -> None:
    images = torch.zeros(n, 32, 8, 8, dtype=torch.bfloat16)
    images[0, 3, 4, 4] = float("nan")
    filters = torch.zeros(32, 32, 3, 3, requires_grad=True)
    out = AmxConvolution.apply(images, filters, 1)
    out.sum().backward()
    assert out[0, :, 3:6, 3:6].isnan().all() and out.isnan().sum() == 32 * 9
    assert filters.grad is not None and filters.grad.isnan().any()
