"""Gates of channels with what follows them, against torch's operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.kernel_checks import ACTIVATIONS, CHANNELS, ROUNDING, check_two_readers, difference, dtypes, maps
from resfit.kernels.gate import GateActivation, Means

pytestmark = pytest.mark.parametrize("dtype", dtypes("gate"), ids=str)


def gates(images: int = 7, channels: int = CHANNELS) -> Tensor:
    return torch.rand(images, channels, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("adds", [False, True])
def test_a_gate_equals_torchs_forward_and_back(dtype: torch.dtype, activation: str | None, adds: bool) -> None:
    given = [maps(dtype, 0).requires_grad_(), gates().requires_grad_()] + (
        [maps(dtype, 2).requires_grad_()] if adds else []
    )
    exact = [value.detach().double().requires_grad_() for value in given]
    z = exact[0] * exact[1][:, :, None, None]
    wanted = ACTIVATIONS[activation](z + exact[2] if adds else z)
    out, _ = GateActivation.apply(given[0], given[1], given[2] if adds else None, activation)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert difference(out, wanted) < ROUNDING[dtype]
    found = torch.autograd.grad(out, given, maps(dtype, 1))
    gradients = torch.autograd.grad(wanted, exact, maps(dtype, 1).double())
    for name, one, other in zip(("x", "gates", "added"), found, gradients, strict=False):
        assert difference(one, other) < (2e-4 if name == "gates" else 2 * ROUNDING[dtype]), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("adds", [False, True])
def test_gradients_of_two_readers_add_up(dtype: torch.dtype, activation: str | None, adds: bool) -> None:
    given = (maps(dtype, 0).requires_grad_(), gates().requires_grad_(), *[maps(dtype, 2).requires_grad_()] * adds)
    out, twin = GateActivation.apply(given[0], given[1], given[2] if adds else None, activation)
    check_two_readers(out, twin, given)


def test_means_and_the_map_hand_back_one_gradient(dtype: torch.dtype) -> None:
    x = maps(dtype, 0).requires_grad_()
    exact = x.detach().double().requires_grad_()
    of_means, of_map = gates(), maps(dtype, 1)
    means, same = Means.apply(x)
    assert torch.equal(same, x) and difference(means, exact.mean((2, 3))) < 1e-6
    (found,) = torch.autograd.grad((means, same), x, (of_means, of_map))
    (wanted,) = torch.autograd.grad((exact.mean((2, 3)), exact * 1), exact, (of_means.double(), of_map.double()))
    assert difference(found, wanted) < ROUNDING[dtype]


def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    before, results = torch.get_num_threads(), []
    x, weights = maps(dtype, 0, (9, 64, 16, 16)).requires_grad_(), gates(9, 64).requires_grad_()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            means, same = Means.apply(x)
            out, _ = GateActivation.apply(same, weights * means.sigmoid(), None, "gelu")
            results.append((means, out, *torch.autograd.grad(out, (x, weights), maps(dtype, 1, (9, 64, 16, 16)))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
