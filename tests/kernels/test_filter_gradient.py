"""The gradient of filters by AMX against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import difference, needs

from resfit.kernels.filter_gradient import AmxConvolution

pytestmark = needs("filter_gradient")

SHAPES = [  # images, height, width, channels, outputs, side of the filters, stride
    (2, 8, 8, 64, 64, 3, 1),
    (1, 1, 1, 32, 32, 3, 1),
    (3, 7, 9, 32, 96, 3, 1),  # odd sides, and a group of images that is not full
    (70, 4, 4, 64, 32, 3, 1),  # more than one group
    (5, 3, 3, 96, 160, 3, 1),
    (33, 6, 6, 640, 96, 3, 1),  # sums in more than one slice of the inputs
    (1, 33, 34, 32, 64, 3, 1),
    (2, 8, 8, 64, 64, 3, 2),
    (3, 7, 9, 32, 64, 3, 2),
    (4, 9, 12, 32, 64, 3, 3),
    (3, 8, 8, 64, 96, 1, 1),
    (3, 9, 8, 64, 96, 1, 2),
    (9, 8, 6, 32, 64, 5, 2),
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
    images = torch.randint(-3, 4, (40, 32, 9, 9), generator=generator).bfloat16()
    filters = torch.randint(-2, 3, (64, 32, 3, 3), generator=generator).float()
    gradient = torch.randint(-3, 4, (40, 64, 9, 9), generator=generator).bfloat16()
    exact = filters.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(F.conv2d(images.float(), exact, padding=1), exact, gradient.float())
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            for form in (torch.contiguous_format, torch.channels_last):
                torch.set_num_threads(threads)
                given = filters.clone(memory_format=form).requires_grad_()
                out = AmxConvolution.apply(images.clone(memory_format=form), given, 1)
                (found,) = torch.autograd.grad(out, given, gradient.contiguous(memory_format=form))
                assert torch.equal(found, wanted)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_finite_stays_so() -> None:
    images = torch.zeros(1, 32, 8, 8, dtype=torch.bfloat16)
    images[0, 3, 4, 4] = float("nan")
    filters = torch.zeros(32, 32, 3, 3, requires_grad=True)
    AmxConvolution.apply(images, filters, 1).sum().backward()
    assert filters.grad is not None and filters.grad.isnan().any()
