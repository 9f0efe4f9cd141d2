"""Where kernels are taken, how they come into being, and that a network computes the same with them."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from helpers.kernel_checks import ROUNDING, difference, dtypes, needs
from resfit import kernels
from resfit.data import Dataset
from resfit.errors import BadInput
from resfit.fast import fast_process
from resfit.kernels import library
from resfit.kernels.amx_convolution import AmxConvolution
from resfit.kernels.conv import Conv2d
from resfit.kernels.gate import Means
from resfit.kernels.library import LIBRARIES, load_library, variant
from resfit.kernels.pool import MaxPool2d, MaxPool2x2
from resfit.kernels.winograd import WinogradConvolution
from resfit.layers import EfficientChannelAttention, Layers, Norm, SqueezeExcite, finish, for_second_reader
from resfit.machine import cpu_flags
from resfit.net import build
from resfit.observer import Observer
from resfit.recipe import Recipe, get_recipe
from resfit.record import EpochPoint
from resfit.run import train
from resfit.spec import ECASpec, NormSpec, SESpec


def computing(dtype: torch.dtype) -> torch.autocast:
    """Let the CPU compute in a dtype."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that are called; torch computes in their place."""
    found: list[str] = []

    def stand_in(name: str, plain: Any) -> Any:
        def apply(*arguments: Any) -> Any:
            found.append(name)
            return plain(*arguments)

        return apply

    def convolve(images: Tensor, filters: Tensor, stride: int = 1) -> Tensor:
        return nn.functional.conv2d(images, filters.to(images.dtype), stride=stride, padding=filters.shape[-1] // 2)

    monkeypatch.setattr(WinogradConvolution, "apply", stand_in("winograd", convolve))
    monkeypatch.setattr(AmxConvolution, "apply", stand_in("amx_convolution", convolve))
    monkeypatch.setattr(MaxPool2x2, "apply", stand_in("pool", lambda x: nn.functional.max_pool2d(x, 2)))
    yield found


AVX512 = "avx2 avx512bw avx512cd avx512dq avx512f avx512vl bmi2 fma"
ALL = {"winograd", "winograd_fp32", "amx_convolution"}
CONVOLUTIONS = [
    (Conv2d(32, 64, 3, padding=1), (8, 32, 8, 8), ALL),
    (Conv2d(32, 64, 3, padding=1, bias=False), (8, 32, 8, 8), ALL),
    (Conv2d(48, 64, 3, padding=1), (8, 48, 8, 8), ALL),
    (Conv2d(32, 64, 3, padding=1), (7, 32, 8, 8), {"amx_convolution"}),  # too few tiles for the others
    (Conv2d(32, 64, 3, padding=1, stride=2), (8, 32, 8, 8), {"amx_convolution"}),
    (Conv2d(32, 64, 3, padding=0), (8, 32, 8, 8), set()),
    (Conv2d(32, 64, 3, padding=2, dilation=2), (8, 32, 8, 8), set()),
    (Conv2d(32, 64, 1), (8, 32, 8, 8), {"amx_convolution"}),
    (Conv2d(32, 64, 1, stride=2), (8, 32, 8, 8), {"amx_convolution"}),
    (Conv2d(32, 64, 5, padding=2), (8, 32, 8, 8), {"amx_convolution"}),
    (Conv2d(32, 64, 2), (8, 32, 8, 8), set()),
    (Conv2d(32, 64, 3, padding=1, groups=2), (8, 32, 8, 8), set()),
    (Conv2d(40, 64, 3, padding=1), (8, 40, 8, 8), {"amx_convolution", "winograd_fp32"}),
    (Conv2d(24, 64, 3, padding=1), (8, 24, 8, 8), {"amx_convolution", "winograd_fp32"}),
    (Conv2d(16, 64, 3, padding=1), (8, 16, 8, 8), {"winograd_fp32"}),
    (Conv2d(8, 64, 3, padding=1), (8, 8, 8, 8), set()),
    (Conv2d(20, 64, 3, padding=1), (8, 20, 8, 8), {"amx_convolution"}),
]


@pytest.mark.parametrize("library", sorted(ALL))
@pytest.mark.parametrize(("conv", "shape", "by"), CONVOLUTIONS)
def test_convolutions_take_a_kernel_where_it_pays(
    library: str, conv: Conv2d, shape: tuple[int, ...], by: set[str], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda dtype: (library,))
    monkeypatch.setattr("resfit.kernels.conv.lanes", lambda dtype: 16 if dtype == torch.bfloat16 else 8)
    images, in_bf16 = torch.randn(shape), LIBRARIES[library].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        out, plain = conv(images), super(Conv2d, conv).forward(images)
    assert calls == [library.removesuffix("_fp32")] * (library in by)
    assert difference(out, plain) < 0.008
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=not in_bf16):
        conv(images)
    assert not calls


@pytest.mark.parametrize(("most", "taken"), [(64 * 64, True), (64 * 64 - 1, False)])
def test_filters_whose_transforms_would_fill_the_memory_are_torchs(
    most: int, taken: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda dtype: ("winograd_fp32",))
    monkeypatch.setattr("resfit.kernels.conv._MOST_FILTERS", most)
    Conv2d(64, 64, 3, padding=1)(torch.randn(8, 64, 8, 8))
    assert calls == ["winograd"] * taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("size", "channels", "taken"), [(2, 16, True), (2, 24, False), (3, 16, False)])
def test_pools_take_their_kernel_where_it_fits(
    size: int, channels: int, taken: bool, dtype: torch.dtype, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda dtype: (variant("pool", dtype),))
    images = torch.randn(2, channels, 8, 8).to(dtype)
    with computing(dtype):
        assert torch.equal(MaxPool2d(size)(images), nn.MaxPool2d(size)(images))
        assert calls == ["pool"] * taken
        MaxPool2d(size)(images.double())
    with computing(torch.float32 if dtype == torch.bfloat16 else torch.bfloat16):
        MaxPool2d(size)(images)
    assert len(calls) == taken


@pytest.mark.parametrize("dtype", dtypes("norm"))
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.Identity(), None])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_norm_computes_and_remembers_the_same_with_its_kernel(
    activation: nn.Module | None, adds: bool, mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, added = (torch.randn(4, 32, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    results = []
    for in_use in ((), (variant("norm", dtype),)):
        monkeypatch.setattr(kernels, "in_use", lambda dtype, names=in_use: names)
        norm = Norm(32, NormSpec(momentum=0.3))
        norm.running_mean = torch.linspace(-1, 1, 32)
        layers = Layers(norm).train(mode == "train")
        with computing(dtype), torch.set_grad_enabled(mode == "train"):
            assert norm.takes_kernel(x) == bool(in_use)
            out = layers(x.clone(), added=added if adds else None, act=activation)
        results.append((out, norm.running_mean, norm.running_var, norm.num_batches_tracked))
    (plain, *plain_state), (fused, *fused_state) = results
    assert difference(fused, plain) < 2 * ROUNDING[dtype]
    for one, other in zip(fused_state, plain_state, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", dtypes("norm"))
@pytest.mark.parametrize(
    ("activation", "channels", "taken"),
    [(nn.GELU(), 24, True), (nn.SiLU(), 16, True), (nn.ReLU(), 16, False), (nn.GELU(), 3, False)],
)
def test_an_activation_alone_takes_a_kernel_where_it_pays(
    activation: nn.Module, channels: int, taken: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda dtype: (variant("norm", dtype),))
    x = torch.randn(1, channels, 8, 6).requires_grad_()
    with computing(dtype):
        for given in (x.to(dtype), x.double()):
            out = finish(given, act=activation)
            assert difference(out, activation(given)) < 2 * ROUNDING[dtype]
            assert ("Activation" in type(out.grad_fn).__name__) == (taken and given.dtype == dtype)


@pytest.mark.parametrize("dtype", dtypes("gate"))
@pytest.mark.parametrize("kind", ["se", "eca"])
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.GELU(), None])
@pytest.mark.parametrize("adds", [False, True])
def test_a_gate_computes_the_same_with_its_kernel(
    kind: str, activation: nn.Module | None, adds: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    gate = SqueezeExcite(32, SESpec(reduction=4)) if kind == "se" else EfficientChannelAttention(32, ECASpec())
    x, added = (torch.randn(4, 32, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    results = []
    for in_use in ((), (variant("gate", dtype),)):
        monkeypatch.setattr(kernels, "in_use", lambda dtype, names=in_use: names)
        of_x, of_added = x.clone().requires_grad_(), added.clone().requires_grad_()
        with computing(dtype):
            assert gate.takes_kernel(of_x) == bool(in_use)
            out = Layers(gate)(of_x, added=of_added if adds else None, act=activation)
        given = [of_x, *gate.parameters(), *([of_added] if adds else [])]
        results.append((out, *torch.autograd.grad(out.float().square().sum(), given)))
    for plain, fused in zip(*results, strict=True):
        assert difference(fused, plain) < 7 * ROUNDING[dtype]
    assert not gate.takes_kernel(x.double())


@pytest.mark.parametrize("dtype", dtypes("gate"))
def test_a_gate_reads_gradients_however_they_lie(dtype: torch.dtype) -> None:
    x = torch.randn(4, 32, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    wanted = torch.randn(32, 4).T
    for _ in range(20):  # memory that was freed is soon somebody else's
        (found,) = torch.autograd.grad(Means.apply(x)[0], x, wanted)
        torch.testing.assert_close(found.float(), (wanted / 36)[:, :, None, None].expand(x.shape), rtol=0.01, atol=0.01)


BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


@BOTH
@pytest.mark.parametrize(
    "compute",
    [
        lambda none: Conv2d(64, 64, 3, padding=1)(none),
        lambda none: finish(none, Norm(64, NormSpec()).eval(), act=nn.ReLU()),
        lambda none: finish(none, act=nn.GELU()),
        lambda none: MaxPool2d(2)(none),
    ],
    ids=["convolution", "norm", "activation", "pool"],
)
def test_a_batch_of_no_images_is_torch_s(compute: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """A process of several may have no image of a last small batch."""
    with kernels.fast_kernels(), computing(dtype), torch.no_grad():
        assert len(compute(torch.empty(0, 64, 8, 8, dtype=dtype))) == 0


@BOTH
@pytest.mark.parametrize(
    "compute",
    [
        lambda maps: Conv2d(32, 64, 3, padding=1)(maps),
        lambda maps: Conv2d(128, 64, 3, padding=1)(maps),
        lambda maps: finish(maps, Norm(32, NormSpec())),
        lambda maps: finish(maps, Norm(64, NormSpec()), maps[:, :, :4, :4]),
        lambda maps: finish(maps[:1, :, :1, :1], Norm(64, NormSpec())),
    ],
    ids=["fewer inputs", "more inputs", "fewer channels", "another size", "a variance of one value"],
)
def test_what_torch_refuses_is_refused(compute: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    with kernels.fast_kernels(), computing(dtype), pytest.raises((RuntimeError, ValueError)):
        compute(torch.ones(8, 64, 8, 8, dtype=dtype))


@BOTH
@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(64, 64, 3, padding=1, padding_mode="reflect", bias=False),
        MaxPool2d(2, ceil_mode=True),
        MaxPool2d(2, padding=1),
        MaxPool2d(2, dilation=2),
    ],
    ids=["reflecting convolution", "pool that rounds up", "pool with padding", "pool with gaps"],
)
def test_what_kernels_do_not_know_torch_computes(layer: nn.Module, dtype: torch.dtype) -> None:
    maps = torch.randn(8, 64, 9, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    with computing(dtype), torch.no_grad():
        wanted = layer(maps)
        with kernels.fast_kernels():
            assert torch.equal(layer(maps), wanted)


@pytest.mark.parametrize("channels", [3, 5, 6, 7, 8, 12, 15, 16])
@pytest.mark.parametrize("size", [8, 9])
@BOTH
def test_strided_1x1_filters_of_few_channels_have_the_right_gradient(
    channels: int, size: int, dtype: torch.dtype
) -> None:
    """torch's own was off by 10 to 100 % with AVX2, fewer than 8 channels and two threads."""
    torch.manual_seed(0)
    layer, maps = Conv2d(channels, 8, 1, stride=2), torch.randn(64, channels, size, size)
    maps = maps.contiguous(memory_format=torch.channels_last)
    for _ in range(5):
        with computing(dtype):
            out = layer(maps)
        assert out.shape == (64, 8, 4 + size % 2, 4 + size % 2)
        gradient = torch.randn(out.shape).to(out.dtype)
        (found,) = torch.autograd.grad(out, layer.weight, gradient)
        wanted = torch.einsum("nohw,nihw->oi", gradient.double(), maps[:, :, ::2, ::2].to(dtype).double())
        assert difference(found[:, :, 0, 0], wanted) < (0.03 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize(
    "compute",
    [
        Conv2d(64, 64, 3, padding=1, bias=False),
        partial(finish, layer=Norm(64, NormSpec()), act=nn.ReLU()),
        partial(finish, layer=SqueezeExcite(64, SESpec()), act=nn.GELU()),
        partial(finish, act=nn.GELU()),
        MaxPool2d(2),
    ],
    ids=["convolution", "norm", "gate", "activation", "pool"],
)
@BOTH
def test_what_happens_around_a_kernel_changes_nothing(compute: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Saved tensors that come back in another order, a mode that sees each operation, tracing."""
    given = torch.randn(8, 64, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    with kernels.fast_kernels(), computing(dtype):
        wanted = compute(given)
        of_wanted = torch.autograd.grad(wanted.float().square().sum(), given)[0]
        with torch.autograd.graph.save_on_cpu(pin_memory=True):
            out = compute(given)
        found = torch.autograd.grad(out.float().square().sum(), given)[0]
        torch.testing.assert_close(found, of_wanted, rtol=0.01, atol=1e-4)
        with FlopCounterMode(display=False):
            torch.testing.assert_close(compute(given), wanted, rtol=0.02, atol=0.02)
        traced = make_fx(compute)(given)
        torch.testing.assert_close(traced(given), wanted, rtol=0.02, atol=0.02)


@BOTH
def test_a_default_device_is_not_that_of_a_kernel_s_tensors(dtype: torch.dtype) -> None:
    maps = torch.randn(8, 64, 8, 8).to(dtype).requires_grad_()
    conv, norm, gate = Conv2d(64, 64, 3, padding=1), Norm(64, NormSpec()), SqueezeExcite(64, SESpec())
    with kernels.fast_kernels(), computing(dtype), torch.device("meta"):
        out = finish(finish(MaxPool2d(2)(conv(maps)), norm), gate, act=nn.GELU())
        out = finish(out, act=nn.SiLU())
        (gradient,) = torch.autograd.grad(out.float().sum(), maps)
    assert out.is_cpu and out.isfinite().all() and gradient.is_cpu and gradient.isfinite().all()


@BOTH
def test_layers_whose_tensors_have_other_sizes_are_torchs(dtype: torch.dtype) -> None:
    """Kernels would read and write past their ends."""
    maps = torch.randn(8, 64, 8, 8).to(dtype)
    fewer, narrow, apart = Conv2d(64, 64, 3, padding=1, bias=False), Norm(64, NormSpec()), Norm(64, NormSpec()).eval()
    fewer.weight.data = fewer.weight.data[:36].clone()
    narrow.bias.data = narrow.bias.data[:8].clone()
    apart.running_var = apart.running_var.double()
    with kernels.fast_kernels(), computing(dtype), torch.no_grad():
        assert fewer(maps).shape == (8, 36, 8, 8)
        for wrong in (narrow, apart):
            with pytest.raises(RuntimeError):
                finish(maps, wrong)


def test_a_norm_that_counts_its_batches_averages_over_them() -> None:
    """As torch.optim.swa_utils.update_bn asks it to."""
    ours, torchs = Norm(64, NormSpec()), nn.BatchNorm2d(64)
    ours.momentum = torchs.momentum = None
    for seed in range(3):
        maps = torch.randn(8, 64, 8, 8, generator=torch.Generator().manual_seed(seed))
        torchs(maps)
        with kernels.fast_kernels():
            finish(maps, ours)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=1e-4, atol=1e-5)
    assert ours.num_batches_tracked == 3


@BOTH
def test_a_map_that_was_changed_has_no_twin(dtype: torch.dtype) -> None:
    maps = torch.randn(8, 64, 8, 8).to(dtype).requires_grad_()
    gradients = []
    for block in (nullcontext, kernels.fast_kernels):
        with block(), computing(dtype):
            out = finish(maps, Norm(64, NormSpec()))
            out.mul_(2)
            read = (out.float() * torch.arange(8.0) + for_second_reader(out).float().square()).sum()
            gradients.append(torch.autograd.grad(read, maps)[0])
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05)


def test_the_other_gelu_is_torchs() -> None:
    maps = torch.linspace(-3, 3, 8 * 64 * 64).reshape(8, 64, 8, 8)
    with kernels.fast_kernels():
        assert torch.equal(finish(maps, act=nn.GELU("tanh")), nn.GELU("tanh")(maps))


def test_a_strided_1x1_convolution_takes_a_single_image() -> None:
    layer, image = Conv2d(8, 8, 1, stride=2), torch.randn(8, 9, 9)
    torch.testing.assert_close(layer(image), layer(image[None])[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_kernels_read_no_memory_that_is_not_there() -> None:
    """They would end the process."""
    maps, layer = torch.randn(8, 64, 8, 8), Conv2d(64, 64, 3, padding=1, bias=False)
    with kernels.fast_kernels():
        assert Conv2d(64, 64, 3, padding=1, bias=False, device="meta")(maps).shape == maps.shape
        traced = torch.jit.trace(layer, maps, check_trace=False)
        torch.testing.assert_close(traced(maps), layer(maps), rtol=1e-4, atol=1e-4)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert layer(mode.from_tensor(maps)).shape == maps.shape
        mixed = Norm(64, NormSpec())
        mixed.weight.data = mixed.weight.double()
        with pytest.raises(RuntimeError):
            finish(maps, mixed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("flushes", [False, True])
def test_a_block_leaves_denormals_as_they_were(dtype: torch.dtype, flushes: bool) -> None:
    def flushed() -> bool:
        return (torch.tensor([1e-39], dtype=torch.float32) * 1).item() == 0

    torch.set_flush_denormal(flushes)
    torch.set_default_dtype(dtype)
    try:
        with fast_process():
            assert flushed()
        assert flushed() == flushes
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", dtypes("norm"))
def test_another_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 4096).to(dtype).reshape(1, 64, 8, 8)
    with kernels.fast_kernels(), computing(dtype):
        wanted = finish(x, act=nn.GELU())
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(finish(x, act=nn.GELU()), wanted)
        finally:
            torch.set_default_dtype(torch.float32)


def test_a_block_within_another_ends_alone() -> None:
    """In the same thread and in another: neither denormals nor kernels come back before the outer block ends."""

    def denormal() -> float:
        return (torch.tensor([1e-39]) * 1).item()

    assert denormal()
    with fast_process():
        with fast_process():
            pass
        assert not denormal()
        within, go_on = threading.Event(), threading.Event()

        def other() -> None:
            with kernels.fast_kernels():
                within.set()
                go_on.wait()

        thread = threading.Thread(target=other)
        thread.start()
        within.wait()
    assert not kernels.in_use(torch.float32) and denormal()
    go_on.set()
    thread.join()
    assert not kernels.in_use(torch.float32)


def test_a_norm_leaves_its_kernel_where_gradients_need_its_own_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda dtype: ("norm", "norm_fp32"))
    for dtype in (torch.bfloat16, torch.float32):
        norm, x = Norm(32, NormSpec()).eval(), torch.randn(4, 32, 6, 6).to(dtype)
        with computing(dtype):
            assert not norm.takes_kernel(x)  # no kernel for the way back through running statistics
            assert norm.train().takes_kernel(x)
            assert not norm.takes_kernel(x.double())
            assert not Norm(24, NormSpec()).takes_kernel(torch.randn(4, 24, 6, 6).to(dtype))


def expected(dtype: torch.dtype) -> tuple[str, ...]:
    return tuple(name for name in kernels.suited(dtype) if load_library(name) is not None)


@BOTH
def test_kernels_are_used_inside_the_block_alone_and_not_where_they_are_turned_off(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not kernels.in_use(dtype)
    with fast_process():
        assert kernels.in_use(dtype) == expected(dtype)
        with kernels.fast_kernels():
            pass
        assert kernels.in_use(dtype) == expected(dtype)
    assert not kernels.in_use(dtype)
    monkeypatch.setenv("RESFIT_KERNELS", "0")
    with fast_process():
        assert not kernels.in_use(dtype)


@pytest.mark.parametrize(
    ("features", "bf16", "fp32"),
    [
        ("", "", ""),
        ("avx2", "", ""),
        ("avx2 fma", "", "gate_fp32 norm_fp32 pool_fp32 winograd_fp32"),
        ("avx2 fma avx512f", "", "gate_fp32 norm_fp32 pool_fp32 winograd_fp32"),
        ("avx2 fma avx512f avx512_bf16", "", "gate_fp32 norm_fp32 pool_fp32 winograd_fp32"),
        (f"{AVX512} avx512_bf16", "gate norm pool winograd", "gate_fp32 norm_fp32 pool_fp32 winograd_fp32"),
        (
            f"{AVX512} avx512_bf16 amx_tile amx_bf16",
            "amx_convolution gate norm pool",
            "gate_fp32 norm_fp32 pool_fp32 winograd_fp32",
        ),
    ],
)
def test_each_processor_has_its_kernels(features: str, bf16: str, fp32: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cpu_flags", lambda: frozenset(features.split()))
    assert kernels.suited(torch.bfloat16) == tuple(bf16.split())
    assert kernels.suited(torch.float32) == tuple(fp32.split())
    assert kernels.suited(torch.float16) == ()


def test_without_a_compiler_torch_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        for name, value in (("CXX", str(tmp_path / "none")), ("CXX", "false")):
            monkeypatch.setenv(name, value)
            load_library.cache_clear()
            assert load_library("pool_fp32") is None
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", str(tmp_path))
        load_library.cache_clear()
        assert load_library("pool_fp32") is None
    finally:
        load_library.cache_clear()


def test_a_run_says_which_kernels_it_uses_and_goes_on_with_no_others(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listener(Observer):
        def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
            told.append(note)

        def epoch_ended(self, point: EpochPoint) -> None:
            if point.epoch == 1 and len(told) == 1:
                raise RuntimeError("cut")

    monkeypatch.setattr(kernels, "suited", lambda dtype: ("winograd",))
    monkeypatch.setattr(kernels, "load_library", lambda name: None)
    recipe = tiny.replace({"train.precision": "bf16", "train.checkpoint_minutes": 1e-9})
    with pytest.raises(RuntimeError, match="cut"):
        train(recipe, out=tmp_path, device="cpu", observer=Listener())
    assert "faster kernels could not be compiled or cached" in told[0]
    monkeypatch.setattr(kernels, "load_library", lambda name: object())  # no layer is wide enough to call it
    with pytest.raises(BadInput, match="computed with bf16, but this machine would continue with bf16 winograd"):
        train(recipe, out=tmp_path, device="cpu", resume=True)
    record = train(recipe, out=tmp_path / "other", device="cpu", observer=Listener())
    assert record.env["kernels"] == ["winograd"] and "kernels: winograd" in told[1]


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("c++"), reason="needs a C++ compiler for x86-64 processors"
)
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_compiles_for_all_processors_that_it_is_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this a fault in a library would only skip its tests, and this machine may not be one that it is for."""
    made = LIBRARIES[name]
    if cpu_flags().issuperset(made.needs) and "amx_tile" not in made.needs:  # the system may refuse AMX's tiles
        assert load_library(name) is not None
    for more in ((), ("avx512f",)) if made.dtype == torch.float32 else ((),):
        monkeypatch.setattr(library, "processor", lambda more=more: ("any", (*made.needs, *more)))
        unoptimized = (*library._options(made), "-O0")
        library._compile(library._HERE / made.source, unoptimized, tmp_path / "made.so")


@needs("pool_fp32")
def test_a_library_is_kept_in_the_cache_and_a_damaged_one_is_not_taken(tmp_path: Path) -> None:
    show = "from resfit.kernels.library import load_library; print(load_library('pool_fp32') is not None)"

    def run(**more: str) -> str:
        env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **more}
        return subprocess.run([sys.executable, "-c", show], env=env, capture_output=True, text=True, check=True).stdout

    assert run() == "True\n"
    (kept,) = (tmp_path / "resfit").iterdir()
    assert run(CXX="false") == "True\n"  # no need to compile again
    kept.write_bytes(kept.read_bytes()[:1000])
    assert run() == "True\n"


@needs("pool_fp32")
def test_threads_that_ask_at_once_get_one_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "env c++")  # a compiler in two words
    load_library.cache_clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(load_library, ["pool_fp32"] * 4))
    finally:
        load_library.cache_clear()
    assert len(list((tmp_path / "resfit").iterdir())) == 1


def test_without_a_home_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr("resfit.kernels.library.cache_dir", nobody)
    load_library.cache_clear()
    try:
        assert load_library("pool_fp32") is None
    finally:
        load_library.cache_clear()


@pytest.mark.parametrize("dtype", dtypes("norm"))
@pytest.mark.parametrize("recipe_name", ["cifar10-94", "seed003", "seed004"])
def test_a_network_gives_nearly_what_it_gives_without(recipe_name: str, dtype: torch.dtype) -> None:
    """Logits, the loss's gradients and the running statistics, of whole networks."""
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    recipe, results = get_recipe(recipe_name), []
    for precision, fast in ((torch.float64, False), (dtype, False), (dtype, True)):
        torch.manual_seed(0)
        net = build(recipe.spec, recipe.init).train()
        exact = precision == torch.float64
        with kernels.fast_kernels() if fast else nullcontext(), computing(dtype if not exact else torch.float32):
            net = net.double() if exact else net
            loss = nn.functional.cross_entropy(net(images.double() if exact else images), torch.arange(16) % 10)
        loss.backward()
        gradients = torch.cat([value.grad.flatten() for value in net.parameters() if value.grad is not None])
        buffers = torch.cat([value.flatten().double() for value in net.buffers()])
        results.append((gradients, buffers))
    exact_ones, plain, fused = results
    slack = {torch.bfloat16: 0.01, torch.float32: 1e-4}[dtype]
    for one, other, whole in zip(fused, plain, exact_ones, strict=True):
        assert difference(one, whole) < 1.3 * difference(other, whole) + slack  # no less exact than torch
    assert expected(dtype) == () or not torch.equal(fused[0], plain[0])
