"""What several test files use: a recipe that trains in a second, and the place of the real CIFAR-10."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.tiny_recipe import TINY
from resfit.recipe import Recipe

torch.set_num_threads(2)

# Set already while tests are collected, which looks for kernels: no test reads or writes the user's own cache folder.
_CACHE = tempfile.TemporaryDirectory(prefix="resfit-tests-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# What a user may have set, and what would change what the commands print or do.
_SETTINGS = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")
for name in (*_SETTINGS, "RESFIT_KERNELS", "RESFIT_OFFLINE"):
    os.environ.pop(name, None)


def pytest_configure(config: pytest.Config) -> None:
    """Only `pytest -m gpu` sees GPUs: all other tests are of runs on a CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def tiny() -> Recipe:
    """A small network on 8x8 digits, three epochs."""
    return Recipe.from_dict(TINY)


@pytest.fixture
def cifar10_dir() -> Path:
    """The folder of the real CIFAR-10, or a skipped test where it is not on this machine."""
    folder = os.environ.get("RESFIT_DATA_DIR")
    if not folder or not (Path(folder) / "cifar-10-batches-py").is_dir():
        pytest.skip("the real CIFAR-10 is not here: set RESFIT_DATA_DIR to its folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """A job that a shell put in the background ignores SIGINT, and so would all that is tested of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """A folder of 20 dark and 20 light images, 8 x 8, all different."""
    for label, level in (("dark", 40), ("light", 200)):
        for n in range(20):
            path = tmp_path / "images" / label / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), level + n).save(path)
    return tmp_path / "images"
