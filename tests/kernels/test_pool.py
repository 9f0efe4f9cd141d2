"""Max-pooling against torch's, to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers.kernel_checks import dtypes
from resfit.kernels.pool import MaxPool2x2

pytestmark = pytest.mark.parametrize("dtype", dtypes("pool"), ids=str)


@pytest.mark.parametrize("shape", [(3, 16, 8, 8), (2, 48, 7, 9), (1, 32, 2, 2), (4, 16, 3, 6)])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_it_equals_torchs_forward_and_back(
    dtype: torch.dtype, shape: tuple[int, ...], form: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-4, 4, shape, generator=generator).to(dtype)  # many ties
    images = images.contiguous(memory_format=form).requires_grad_()
    out, wanted = MaxPool2x2.apply(images), F.max_pool2d(images, 2)
    assert torch.equal(out, wanted)
    gradient = torch.randn(out.shape, generator=generator).to(dtype)
    assert torch.equal(*(torch.autograd.grad(one, images, gradient)[0] for one in (out, wanted)))


def test_what_is_not_a_number_comes_through(dtype: torch.dtype) -> None:
    images = torch.zeros(1, 16, 4, 4, dtype=dtype)
    for place in range(4):
        images[0, place, place // 2, place % 2] = float("nan")
    assert MaxPool2x2.apply(images)[0, :, 0, 0].isnan().nonzero().flatten().tolist() == [0, 1, 2, 3]
