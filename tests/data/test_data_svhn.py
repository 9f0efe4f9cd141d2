from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resfit.data import load_dataset, svhn
from resfit.errors import BadInput
from resfit.recipe import DataConfig

CONFIG = DataConfig(name="svhn", val=10)


def write_mat(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    from scipy.io import savemat

    savemat(path, {"X": pixels, "y": labels}, do_compression=True)


def write_part(folder: Path, part: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(n).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    labels = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]  # the digit 0 is written 10
    write_mat(folder / svhn.FILES[part][0], pixels, labels)
    return pixels, labels


def expect_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, (name, _) in list(svhn.FILES.items()):
        md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(svhn.FILES, part, (name, md5))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_part(tmp_path, "train", 60)
    write_part(tmp_path, "test", 20)
    expect_what_is_there(tmp_path, monkeypatch)
    return tmp_path


def test_svhn_contract(tiny: Path, check_contract: Callable[..., None]) -> None:
    data = load_dataset(CONFIG, size=32, data_dir=tiny, offline=True)
    check_contract(data, size=32, channels=3, counts=(50, 10, 20))
    assert data.val.labels.bincount().tolist() == [1] * 10


def test_images_and_labels_are_the_files(tiny: Path) -> None:
    pixels, _ = write_part(tiny, "test", 20)
    test = load_dataset(CONFIG, size=32, data_dir=tiny, offline=True).test
    assert test.labels.tolist() == [(i + 1) % 10 for i in range(20)]
    assert torch.equal(test.images[7], torch.from_numpy(pixels[..., 7]).permute(2, 0, 1))


def test_a_damaged_file_is_named(tiny: Path) -> None:
    path = tiny / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput, match=r"MD5 is wrong \(.*test_32x32.mat\): delete it and download it again"):
        load_dataset(CONFIG, size=32, data_dir=tiny, offline=True)


def bad_files() -> dict[str, Callable[[Path], object]]:
    labels = np.ones((4, 1), np.uint8)
    pixels = np.zeros((32, 32, 3, 4), np.uint8)
    return {
        "no mat": lambda path: path.write_bytes(b"MATLAB 5.0 it is not"),
        "float pixels": lambda path: write_mat(path, pixels.astype(float), labels),
        "label 11": lambda path: write_mat(path, pixels, labels * 11),
        "other shape": lambda path: write_mat(path, pixels[:16], labels),
        "too few labels": lambda path: write_mat(path, pixels, labels[:3]),
    }


@pytest.mark.parametrize("case", bad_files())
def test_what_is_not_svhn_is_refused(case: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_files()[case](tiny / "train_32x32.mat")
    expect_what_is_there(tiny, monkeypatch)
    with pytest.raises(BadInput, match=r"not a file of SVHN's cropped digits \(.*train_32x32.mat\)"):
        load_dataset(CONFIG, size=32, data_dir=tiny, offline=True)


def test_offline_and_missing_is_one_line(tmp_path: Path, one_line: Callable[..., str]) -> None:
    with pytest.raises(BadInput, match=r"SVHN's train_32x32.mat not found, and downloads are off") as error:
        load_dataset(CONFIG, size=32, data_dir=tmp_path, offline=True)
    one_line(error)


def test_the_official_md5s_are_torchvisions() -> None:
    from torchvision.datasets import SVHN

    assert {part: tuple(SVHN.split_list[part][1:]) for part in ("train", "test")} == svhn.FILES
