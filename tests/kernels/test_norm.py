"""Batch normalization with what follows it, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers.kernel_checks import ACTIVATIONS, CHANNELS, ROUNDING, check_two_readers, difference, dtypes, maps
from resfit.kernels.norm import Activation, NormActivation, normalized

pytestmark = pytest.mark.parametrize("dtype", dtypes("norm"), ids=str)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("scale", "shift"), [(2, 5), (0.01, -3)])
def test_it_equals_torchs_forward_and_back(
    dtype: torch.dtype, activation: str | None, adds: bool, scale: float, shift: float
) -> None:
    x, gradient = maps(dtype, 0, scale=scale, shift=shift).requires_grad_(), maps(dtype, 1)
    weight, bias = (torch.linspace(*ends, CHANNELS, requires_grad=True) for ends in ((-1, 2), (1, -1)))
    given = [x, weight, bias] + ([maps(dtype, 2).requires_grad_()] if adds else [])
    exact = [value.detach().double().requires_grad_() for value in given]
    z = F.batch_norm(exact[0], None, None, exact[1], exact[2], training=True, eps=1e-5)
    wanted = ACTIVATIONS[activation](z + exact[3] if adds else z)
    added = given[3] if adds else None
    out, _, mean, variance = NormActivation.apply(x, weight, bias, added, activation, 1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert difference(out, wanted) < ROUNDING[dtype]
    assert difference(mean, exact[0].mean((0, 2, 3))) < 1e-6
    assert difference(variance, exact[0].var((0, 2, 3), unbiased=False)) < 2e-5
    found = torch.autograd.grad(out, given, gradient)
    gradients = torch.autograd.grad(wanted, exact, gradient.double())
    for name, one, other in zip(("x", "weight", "bias", "added"), found, gradients, strict=False):
        close = 2e-4 if name in ("weight", "bias") else 2 * ROUNDING[dtype]
        assert difference(one, other) < close, name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_memory_layout_gives_the_same_forward_and_back(dtype: torch.dtype, activation: str | None) -> None:
    """A pad shortcut, for one, may hand on a map that is not channels_last."""
    results = []
    for form in (torch.channels_last, torch.contiguous_format):
        x, added = (maps(dtype, seed).contiguous(memory_format=form).requires_grad_() for seed in (0, 2))
        weight, bias = torch.ones(CHANNELS, requires_grad=True), torch.zeros(CHANNELS, requires_grad=True)
        out, *_ = NormActivation.apply(x, weight, bias, added, activation, 1e-5)
        gradient = maps(dtype, 1).contiguous(memory_format=form)
        results.append((out, *torch.autograd.grad(out, (x, weight, bias, added), gradient)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("adds", [False, True])
def test_gradients_of_two_readers_add_up(dtype: torch.dtype, activation: str | None, adds: bool) -> None:
    x, added = maps(dtype, 0).requires_grad_(), maps(dtype, 2).requires_grad_()
    weight, bias = torch.rand(CHANNELS).requires_grad_(), torch.randn(CHANNELS).requires_grad_()
    given = (x, weight, bias, *[added] * adds)
    out, twin, *_ = NormActivation.apply(x, weight, bias, added if adds else None, activation, 1e-5)
    check_two_readers(out, twin, given)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format], ids=str)
def test_an_activation_alone_equals_torchs_forward_and_back(
    dtype: torch.dtype, activation: str, form: torch.memory_format
) -> None:
    x, gradient = (maps(dtype, seed, (4, 24, 8, 10), scale=3).contiguous(memory_format=form) for seed in (0, 1))
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, wanted = Activation.apply(x, activation), ACTIVATIONS[activation](exact)
    assert difference(out, wanted) < ROUNDING[dtype]
    (found,) = torch.autograd.grad(out, x, gradient)
    assert difference(found, torch.autograd.grad(wanted, exact, gradient.double())[0]) < ROUNDING[dtype]


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations_are_right_everywhere(dtype: torch.dtype, activation: str) -> None:
    z = torch.cat((torch.linspace(-12, 12, 4000), torch.tensor([-100.0, -1e30, 1e30, 100.0] + [0.0] * 12)))
    x = z.to(dtype)[:4000].view(1, 16, 250, 1).contiguous(memory_format=torch.channels_last)
    close = {"rtol": 1.5 * ROUNDING[dtype], "atol": 3e-6}
    out = normalized(x, torch.ones(16), torch.zeros(16), None, activation)
    assert torch.allclose(out.double(), ACTIVATIONS[activation](x.double()), **close)
    extreme = z.to(dtype)[4000:].view(1, 16, 1, 1)
    out = normalized(extreme, torch.ones(16), torch.zeros(16), None, activation)
    assert torch.allclose(out.double(), ACTIVATIONS[activation](extreme.double()), **close)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_so(dtype: torch.dtype, activation: str | None) -> None:
    x = maps(dtype, 0)
    x[3, 5, 2, 2] = float("nan")
    out, _, mean, _ = NormActivation.apply(x, torch.ones(CHANNELS), torch.zeros(CHANNELS), None, activation, 1e-5)
    assert mean[5].isnan() and out[:, 5].isnan().all() and out[:, 6].isfinite().all()


def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    before, results = torch.get_num_threads(), []
    x, gradient = maps(dtype, 0, (9, 64, 16, 16)).requires_grad_(), maps(dtype, 1, (9, 64, 16, 16))
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, _, *moments = NormActivation.apply(x, torch.ones(64), torch.zeros(64), None, "gelu", 1e-5)
            results.append((out, *moments, *torch.autograd.grad(out, x, gradient)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
