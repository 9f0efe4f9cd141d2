"""What the tests of the data sources share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resfit.data import Dataset, Images

REAL_DATA_DIR = os.environ.get("RESFIT_DATA_DIR")


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder is an empty one, and no variable points elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("RESFIT_DATA_DIR", raising=False)
    monkeypatch.delenv("RESFIT_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "xdg" / "resfit"


@pytest.fixture
def real_cifar10() -> Path:
    """The folder with the real CIFAR-10."""
    found = REAL_DATA_DIR and any(Path(REAL_DATA_DIR).glob("**/data_batch_1"))
    if not found:
        pytest.skip("RESFIT_DATA_DIR does not name a folder with CIFAR-10")
    return Path(str(REAL_DATA_DIR))


@pytest.fixture
def check_contract() -> Callable[..., None]:
    """What holds for a data set from any source."""

    def check_part(part: Images, shape: tuple[int, int, int], classes: int) -> None:
        assert part.images.dtype == torch.uint8 and part.labels.dtype == torch.int64
        assert part.images.is_contiguous()
        assert tuple(part.images.shape) == (len(part), *shape) and part.labels.shape == (len(part),)
        assert ((part.labels >= 0) & (part.labels < classes)).all()

    def check(data: Dataset, *, size: int, channels: int, counts: tuple[int, int, int]) -> None:
        assert (len(data.train), len(data.val), len(data.test)) == counts
        for part in (data.train, data.val, data.test):
            check_part(part, (channels, size, size), len(data.classes))
        for part in (data.train, data.test):
            assert set(part.labels.tolist()) == set(range(len(data.classes)))
        assert all(isinstance(name, str) for name in data.classes)
        assert len(data.mean) == len(data.std) == channels
        assert len(data.digest) == 64
        assert list(data.duplicates) == ["train/val", "train/test", "val/test"]

    return check


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message of an error, which has to be one line that says what to do."""
    message = str(error.value)
    assert "\n" not in message and ": " in message
    return message


@pytest.fixture(name="one_line")
def one_line_fixture() -> Callable[[pytest.ExceptionInfo[BaseException]], str]:
    return one_line
