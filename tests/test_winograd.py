"""Winograd's convolutions against torch's, and where they are taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resfit import winograd
from resfit.data import Dataset
from resfit.errors import BadInput
from resfit.net import build
from resfit.recipe import Recipe, get_recipe
from resfit.record import EpochPoint
from resfit.run import Observer, fast_process, train
from resfit.winograd import Conv2d, WinogradConvolution

runs_here = pytest.mark.skipif(
    not winograd.is_suited() or winograd.library() is None, reason="needs AVX-512 with bf16, no AMX, and a C++ compiler"
)
# Rounding the operands once they are transformed, and the result: a few times 2^-9.
CLOSE = 0.008


def difference(found: Tensor, wanted: Tensor) -> float:
    return ((found.float() - wanted).norm() / wanted.norm()).item()


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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the images that go through Winograd's method."""
    found: list[tuple[int, ...]] = []

    def apply(images: Tensor, filters: Tensor) -> Tensor:
        found.append(tuple(images.shape))
        return F.conv2d(images, filters.bfloat16(), padding=1)

    monkeypatch.setattr(WinogradConvolution, "apply", apply)
    monkeypatch.setattr(winograd, "_in_use", True)
    yield found


@pytest.mark.parametrize(
    ("conv", "shape", "taken"),
    [
        (Conv2d(32, 64, 3, padding=1), (8, 32, 8, 8), True),
        (Conv2d(32, 64, 3, padding=1, bias=False), (8, 32, 8, 8), True),
        (Conv2d(32, 64, 3, padding=1), (7, 32, 8, 8), False),  # too few tiles
        (Conv2d(32, 64, 3, padding=1, stride=2), (8, 32, 8, 8), False),
        (Conv2d(32, 64, 3, padding=0), (8, 32, 8, 8), False),
        (Conv2d(32, 64, 1), (8, 32, 8, 8), False),
        (Conv2d(32, 64, 5, padding=2), (8, 32, 8, 8), False),
        (Conv2d(32, 64, 3, padding=1, groups=2), (8, 32, 8, 8), False),
        (Conv2d(40, 64, 3, padding=1), (8, 40, 8, 8), False),
        (Conv2d(16, 64, 3, padding=1), (8, 16, 8, 8), False),
    ],
)
def test_it_is_taken_where_it_pays(conv: Conv2d, shape: tuple[int, ...], taken: bool, calls: list[object]) -> None:
    images = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(images)
        plain = super(Conv2d, conv).forward(images)
    assert bool(calls) is taken
    assert difference(out, plain.float()) < CLOSE
    calls.clear()
    conv(images)  # fp32
    assert not calls


def test_it_is_left_outside_the_block_and_where_it_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not winograd.in_use()
    with fast_process():
        assert winograd.in_use() == (winograd.is_suited() and winograd.library() is not None)
        with winograd.winograd_convolutions():
            pass
        assert winograd.in_use() == (winograd.is_suited() and winograd.library() is not None)
    assert not winograd.in_use()
    monkeypatch.setenv("RESFIT_WINOGRAD", "0")
    with fast_process():
        assert not winograd.in_use()


def test_without_a_compiler_convolutions_are_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in (("CXX", str(tmp_path / "none")), ("CXX", "false")):
        monkeypatch.setenv(name, value)
        winograd.library.cache_clear()
        assert winograd.library() is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    winograd.library.cache_clear()
    assert winograd.library() is None
    winograd.library.cache_clear()


def test_a_run_says_how_it_convolves_and_goes_on_in_no_other_way(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listener(Observer):
        def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
            told.append(note)

        def epoch_ended(self, point: EpochPoint) -> None:
            if point.epoch == 1 and len(told) == 1:
                raise RuntimeError("cut")

    monkeypatch.setattr(winograd, "is_suited", lambda: True)
    monkeypatch.setattr(winograd, "library", lambda: None)
    recipe = tiny.replace({"train.precision": "bf16", "train.checkpoint_minutes": 1e-9})
    with pytest.raises(RuntimeError, match="cut"):
        train(recipe, out=tmp_path, device="cpu", observer=Listener())
    assert "direct convolutions (no C++ compiler was found for faster ones)" in told[0]
    monkeypatch.setattr(winograd, "library", lambda: object())  # no layer is wide enough to call it
    with pytest.raises(
        BadInput, match="began in bf16 with direct convolutions, and this machine would take bf16 with wi"
    ):
        train(recipe, out=tmp_path, device="cpu", resume=True)
    record = train(recipe, out=tmp_path / "other", device="cpu", observer=Listener())
    assert record.env["convolution"] == "winograd" and "winograd convolutions" in told[1]


@runs_here
def test_the_library_is_kept_in_the_cache_and_a_damaged_one_is_not_taken(tmp_path: Path) -> None:
    show = "from resfit import winograd; print(winograd.library() is not None)"

    def run(**more: str) -> str:
        env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **more}
        return subprocess.run([sys.executable, "-c", show], env=env, capture_output=True, text=True, check=True).stdout

    assert run() == "True\n"
    (kept,) = (tmp_path / "resfit").iterdir()
    assert run(CXX="false") == "True\n"  # no need to compile again
    kept.write_bytes(kept.read_bytes()[:1000])
    assert run() == "True\n"


@runs_here
def test_a_network_gives_nearly_what_it_gives_without() -> None:
    torch.manual_seed(0)
    recipe = get_recipe("cifar10-94", {"data.val": 0})
    net = build(recipe.spec, recipe.init).train()
    images = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    logits = []
    for use in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            if use:
                with winograd.winograd_convolutions():
                    logits.append(net(images))
            else:
                logits.append(net(images))
    assert not torch.equal(*logits)
    assert difference(logits[0], logits[1].float()) < 0.05
