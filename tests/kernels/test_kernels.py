"""Where kernels are taken, how they come into being, and that a network computes the same with them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.kernel_checks import difference, needs
from resfit import kernels
from resfit.data import Dataset
from resfit.errors import BadInput
from resfit.fast import fast_process
from resfit.kernels.amx_convolution import AmxConvolution
from resfit.kernels.conv import Conv2d
from resfit.kernels.gate import Means
from resfit.kernels.library import load_library
from resfit.kernels.pool import MaxPool2d, MaxPool2x2
from resfit.kernels.winograd import WinogradConvolution
from resfit.layers import EfficientChannelAttention, Layers, Norm, SqueezeExcite, finish
from resfit.net import build
from resfit.observer import Observer
from resfit.recipe import Recipe, get_recipe
from resfit.record import EpochPoint
from resfit.run import train
from resfit.spec import ECASpec, NormSpec, SESpec


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
        return nn.functional.conv2d(images, filters.bfloat16(), stride=stride, padding=filters.shape[-1] // 2)

    monkeypatch.setattr(WinogradConvolution, "apply", stand_in("winograd", convolve))
    monkeypatch.setattr(AmxConvolution, "apply", stand_in("amx_convolution", convolve))
    monkeypatch.setattr(MaxPool2x2, "apply", stand_in("pool", lambda x: nn.functional.max_pool2d(x, 2)))
    yield found


CONVOLUTIONS = [
    (Conv2d(32, 64, 3, padding=1), (8, 32, 8, 8), {"winograd", "amx_convolution"}),
    (Conv2d(32, 64, 3, padding=1, bias=False), (8, 32, 8, 8), {"winograd", "amx_convolution"}),
    (Conv2d(48, 64, 3, padding=1), (8, 48, 8, 8), {"winograd", "amx_convolution"}),
    (Conv2d(32, 64, 3, padding=1), (7, 32, 8, 8), {"amx_convolution"}),  # too few tiles for the other
    (Conv2d(32, 64, 3, padding=1, stride=2), (8, 32, 8, 8), {"amx_convolution"}),
    (Conv2d(32, 64, 3, padding=0), (8, 32, 8, 8), set()),
    (Conv2d(32, 64, 3, padding=2, dilation=2), (8, 32, 8, 8), set()),
    (Conv2d(32, 64, 1), (8, 32, 8, 8), {"amx_convolution"}),
    (Conv2d(32, 64, 1, stride=2), (8, 32, 8, 8), {"amx_convolution"}),
    (Conv2d(32, 64, 5, padding=2), (8, 32, 8, 8), {"amx_convolution"}),
    (Conv2d(32, 64, 2), (8, 32, 8, 8), set()),
    (Conv2d(32, 64, 3, padding=1, groups=2), (8, 32, 8, 8), set()),
    (Conv2d(40, 64, 3, padding=1), (8, 40, 8, 8), {"amx_convolution"}),
    (Conv2d(24, 64, 3, padding=1), (8, 24, 8, 8), {"amx_convolution"}),
    (Conv2d(16, 64, 3, padding=1), (8, 16, 8, 8), set()),
]


@pytest.mark.parametrize("kernel", ["winograd", "amx_convolution"])
@pytest.mark.parametrize(("conv", "shape", "by"), CONVOLUTIONS)
def test_convolutions_take_a_kernel_where_it_pays(
    kernel: str, conv: Conv2d, shape: tuple[int, ...], by: set[str], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda: (kernel,))
    images = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        out, plain = conv(images), super(Conv2d, conv).forward(images)
    assert calls == [kernel] * (kernel in by)
    assert difference(out, plain) < 0.008
    calls.clear()
    conv(images)  # fp32
    assert not calls


@pytest.mark.parametrize(("size", "channels", "taken"), [(2, 16, True), (2, 24, False), (3, 16, False)])
def test_pools_take_their_kernel_where_it_fits(
    size: int, channels: int, taken: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda: ("pool",))
    images = torch.randn(2, channels, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MaxPool2d(size)(images), nn.MaxPool2d(size)(images))
    assert calls == ["pool"] * taken
    MaxPool2d(size)(images.float())
    assert len(calls) == taken


@needs("norm")
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.Identity(), None])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_norm_computes_and_remembers_the_same_with_its_kernel(
    activation: nn.Module | None, adds: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, added = (torch.randn(4, 32, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(2))
    results = []
    for in_use in ((), ("norm",)):
        monkeypatch.setattr(kernels, "in_use", lambda names=in_use: names)
        norm = Norm(32, NormSpec(momentum=0.3))
        norm.running_mean = torch.linspace(-1, 1, 32)
        layers = Layers(norm).train(mode == "train")
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(mode == "train"):
            assert norm.takes_kernel(x) == bool(in_use)
            out = layers(x.clone(), added=added if adds else None, act=activation)
        results.append((out, norm.running_mean, norm.running_var, norm.num_batches_tracked))
    (plain, *plain_state), (fused, *fused_state) = results
    assert difference(fused, plain) < 0.006
    for one, other in zip(fused_state, plain_state, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@needs("norm")
@pytest.mark.parametrize(
    ("activation", "channels", "taken"),
    [(nn.GELU(), 24, True), (nn.SiLU(), 16, True), (nn.ReLU(), 16, False), (nn.GELU(), 3, False)],
)
def test_an_activation_alone_takes_a_kernel_where_it_pays(
    activation: nn.Module, channels: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda: ("norm",))
    x = torch.randn(1, channels, 8, 6).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x.bfloat16(), x):
            out = finish(given, act=activation)
            assert difference(out, activation(given)) < 0.004
            assert ("Activation" in type(out.grad_fn).__name__) == (taken and given is not x)


@needs("gate")
@pytest.mark.parametrize("kind", ["se", "eca"])
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.GELU(), None])
@pytest.mark.parametrize("adds", [False, True])
def test_a_gate_computes_the_same_with_its_kernel(
    kind: str, activation: nn.Module | None, adds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    gate = SqueezeExcite(32, SESpec(reduction=4)) if kind == "se" else EfficientChannelAttention(32, ECASpec())
    x, added = (torch.randn(4, 32, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(2))
    results = []
    for in_use in ((), ("gate",)):
        monkeypatch.setattr(kernels, "in_use", lambda names=in_use: names)
        of_x, of_added = x.clone().requires_grad_(), added.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            assert gate.takes_kernel(of_x) == bool(in_use)
            out = Layers(gate)(of_x, added=of_added if adds else None, act=activation)
        given = [of_x, *gate.parameters(), *([of_added] if adds else [])]
        results.append((out, *torch.autograd.grad(out.float().square().sum(), given)))
    for plain, fused in zip(*results, strict=True):
        assert difference(fused, plain) < 0.02
    assert not gate.takes_kernel(x.float())


@needs("gate")
def test_a_gate_reads_gradients_however_they_lie() -> None:
    x = torch.randn(4, 32, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    wanted = torch.randn(32, 4).T
    for _ in range(20):  # memory that was freed is soon somebody else's
        (found,) = torch.autograd.grad(Means.apply(x)[0], x, wanted)
        torch.testing.assert_close(found.float(), (wanted / 36)[:, :, None, None].expand(x.shape), rtol=0.01, atol=0.01)


BATCH_OF_NONE = torch.empty(0, 64, 8, 8).bfloat16()


@pytest.mark.parametrize(
    "compute",
    [
        lambda: Conv2d(64, 64, 3, padding=1)(BATCH_OF_NONE),
        lambda: finish(BATCH_OF_NONE, Norm(64, NormSpec()).eval(), act=nn.ReLU()),
        lambda: finish(BATCH_OF_NONE, act=nn.GELU()),
        lambda: MaxPool2d(2)(BATCH_OF_NONE),
    ],
    ids=["convolution", "norm", "activation", "pool"],
)
def test_a_batch_of_no_images_is_torch_s(compute: Callable[[], Tensor]) -> None:
    """A process of several may have no image of a last small batch."""
    with kernels.fast_kernels(), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert len(compute()) == 0


MAPS = torch.ones(2, 64, 8, 8).bfloat16()


@pytest.mark.parametrize(
    "compute",
    [
        lambda: Conv2d(32, 64, 3, padding=1)(MAPS),
        lambda: Conv2d(128, 64, 3, padding=1)(MAPS),
        lambda: finish(MAPS, Norm(32, NormSpec())),
        lambda: finish(MAPS, Norm(64, NormSpec()), torch.ones(2, 64, 4, 4).bfloat16()),
        lambda: finish(MAPS[:1, :, :1, :1], Norm(64, NormSpec())),
    ],
    ids=["fewer inputs", "more inputs", "fewer channels", "another size", "a variance of one value"],
)
def test_what_torch_refuses_is_refused(compute: Callable[[], Tensor]) -> None:
    with kernels.fast_kernels(), torch.autocast("cpu", torch.bfloat16), pytest.raises((RuntimeError, ValueError)):
        compute()


@needs("norm")
def test_another_default_dtype_changes_nothing() -> None:
    x = torch.linspace(-3, 3, 4096).bfloat16().reshape(1, 64, 8, 8)
    with kernels.fast_kernels(), torch.autocast("cpu", torch.bfloat16):
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
    assert not kernels.in_use() and denormal()
    go_on.set()
    thread.join()
    assert not kernels.in_use()


def test_a_norm_leaves_its_kernel_where_gradients_need_its_own_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "in_use", lambda: ("norm",))
    norm, x = Norm(32, NormSpec()).eval(), torch.randn(4, 32, 6, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert not norm.takes_kernel(x)  # no kernel for the way back through running statistics
        assert norm.train().takes_kernel(x)
        assert not norm.takes_kernel(x.float())
        assert not Norm(24, NormSpec()).takes_kernel(torch.randn(4, 24, 6, 6).bfloat16())


def expected() -> tuple[str, ...]:
    return tuple(sorted(name for name in kernels.suited() if load_library(name) is not None))


def test_kernels_are_used_inside_the_block_alone_and_not_where_they_are_turned_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not kernels.in_use()
    with fast_process():
        assert kernels.in_use() == expected()
        with kernels.fast_kernels():
            pass
        assert kernels.in_use() == expected()
    assert not kernels.in_use()
    monkeypatch.setenv("RESFIT_KERNELS", "0")
    with fast_process():
        assert not kernels.in_use()


def test_without_a_compiler_torch_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        for name, value in (("CXX", str(tmp_path / "none")), ("CXX", "false")):
            monkeypatch.setenv(name, value)
            load_library.cache_clear()
            assert load_library("pool") is None
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", str(tmp_path))
        load_library.cache_clear()
        assert load_library("pool") is None
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

    monkeypatch.setattr(kernels, "suited", lambda: ("winograd",))
    monkeypatch.setattr(kernels, "load_library", lambda name: None)
    recipe = tiny.replace({"train.precision": "bf16", "train.checkpoint_minutes": 1e-9})
    with pytest.raises(RuntimeError, match="cut"):
        train(recipe, out=tmp_path, device="cpu", observer=Listener())
    assert "no C++ compiler was found for faster kernels" in told[0]
    monkeypatch.setattr(kernels, "load_library", lambda name: object())  # no layer is wide enough to call it
    with pytest.raises(BadInput, match="computed with bf16, but this machine would continue with bf16 winograd"):
        train(recipe, out=tmp_path, device="cpu", resume=True)
    record = train(recipe, out=tmp_path / "other", device="cpu", observer=Listener())
    assert record.env["kernels"] == ["winograd"] and "kernels: winograd" in told[1]


@needs("pool")
def test_a_library_is_kept_in_the_cache_and_a_damaged_one_is_not_taken(tmp_path: Path) -> None:
    show = "from resfit.kernels.library import load_library; print(load_library('pool') is not None)"

    def run(**more: str) -> str:
        env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **more}
        return subprocess.run([sys.executable, "-c", show], env=env, capture_output=True, text=True, check=True).stdout

    assert run() == "True\n"
    (kept,) = (tmp_path / "resfit").iterdir()
    assert run(CXX="false") == "True\n"  # no need to compile again
    kept.write_bytes(kept.read_bytes()[:1000])
    assert run() == "True\n"


@needs("pool")
def test_threads_that_ask_at_once_get_one_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "env c++")  # a compiler in two words
    load_library.cache_clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(load_library, ["pool"] * 4))
    finally:
        load_library.cache_clear()
    assert len(list((tmp_path / "resfit").iterdir())) == 1


def test_without_a_home_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr("resfit.kernels.library.cache_dir", nobody)
    load_library.cache_clear()
    try:
        assert load_library("pool") is None
    finally:
        load_library.cache_clear()


@needs("norm")
@pytest.mark.parametrize("recipe_name", ["cifar10-94", "seed003", "seed004"])
def test_a_network_gives_nearly_what_it_gives_without(recipe_name: str) -> None:
    """Logits, the loss's gradients and the running statistics, of whole networks."""
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    recipe, results = get_recipe(recipe_name), []
    for bf16, fast in ((False, False), (True, False), (True, True)):
        torch.manual_seed(0)
        net = build(recipe.spec, recipe.init).train()
        with kernels.fast_kernels() if fast else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = nn.functional.cross_entropy(net(images), torch.arange(16) % 10)
            loss.backward()
        gradients = torch.cat([value.grad.flatten() for value in net.parameters() if value.grad is not None])
        buffers = torch.cat([value.flatten().float() for value in net.buffers()])
        results.append((gradients, buffers))
    exact, plain, fused = results
    for one, other, whole in zip(fused, plain, exact, strict=True):
        assert difference(one, whole) < 1.3 * difference(other, whole) + 0.01  # no less exact than torch's bf16
    assert expected() == () or not torch.equal(fused[0], plain[0])
