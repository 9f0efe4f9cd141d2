from __future__ import annotations

import os
import pickle
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.tiny_cifar import CONFIG, N, array, contents, expect, labels, pairs, tar, write
from resfit.data import cifar, load_dataset
from resfit.errors import BadInput
from resfit.recipe import DataConfig


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that contains cifar-10-batches-py with 50 + 10 images in 5 classes."""
    made = contents("cifar10")
    expect(monkeypatch, "cifar10", made)
    write(tmp_path / "given" / "cifar-10-batches-py", made)
    return tmp_path / "given"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_contract(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_contract: Callable[..., None]
) -> None:
    made = contents(name)
    expect(monkeypatch, name, made)
    write(tmp_path / cifar.FILES[name].folder, made)
    total = 50 if name == "cifar10" else 10
    config = DataConfig(name=name, val=5)  # type: ignore[arg-type]
    data = load_dataset(config, size=32, data_dir=tmp_path, offline=True)
    check_contract(data, size=32, channels=3, counts=(total - 5, 5, 10))
    assert data.classes == tuple(f"class {i}" for i in range(5))
    assert data.val.labels.tolist().count(0) == 1
    assert data.test.images[0].numpy().tobytes() == random.Random(len(cifar.FILES[name].train)).randbytes(3072)


def test_the_folder_is_found_wherever_it_may_be(tiny: Path, own_places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {load_dataset(CONFIG, size=32, data_dir=place, offline=True).digest for place in tiny.glob("**")}
    monkeypatch.setenv("RESFIT_DATA_DIR", str(tiny))
    digests.add(load_dataset(CONFIG, size=32, data_dir=tiny / "nowhere", offline=True).digest)
    monkeypatch.delenv("RESFIT_DATA_DIR")
    own_places.mkdir(parents=True)
    tiny.rename(own_places / "moved")
    (own_places / "moved" / "cifar-10-batches-py").rename(own_places / "cifar-10-batches-py")
    digests.add(load_dataset(CONFIG, size=32, offline=True).digest)
    assert len(digests) == 1


def test_the_split_is_the_seeds_alone(tiny: Path) -> None:
    first, again, other = (
        load_dataset(DataConfig(val=10, split_seed=seed), size=32, data_dir=tiny, offline=True) for seed in (4, 4, 5)
    )
    assert first.digest == again.digest != other.digest
    assert first.duplicates == {"train/val": 0, "train/test": 0, "val/test": 0} and first.notes == ()


def test_another_size_is_scaled_to(tiny: Path, check_contract: Callable[..., None]) -> None:
    data = load_dataset(CONFIG, size=20, data_dir=tiny, offline=True)
    check_contract(data, size=20, channels=3, counts=(40, 10, 10))


def test_duplicates_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = contents("cifar10")
    made["test_batch"] = made["data_batch_1"]
    expect(monkeypatch, "cifar10", made)
    write(tmp_path / "cifar-10-batches-py", made)
    data = load_dataset(DataConfig(val=0), size=32, data_dir=tmp_path, offline=True)
    assert data.duplicates == {"train/val": 0, "train/test": 10, "val/test": 0}
    assert data.notes == ("10 test images are also in train",)


def test_grey_cifar_is_refused(tiny: Path) -> None:
    with pytest.raises(BadInput, match=r"cifar10 has no 1-channel images \(spec.input.channels\): give 3"):
        load_dataset(CONFIG, size=32, channels=1, data_dir=tiny, offline=True)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_named(tiny: Path, damage: str, one_line: Callable[..., str]) -> None:
    path = tiny / "cifar-10-batches-py" / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes({"truncate": content[:-100], "flip": content, "empty": b""}[damage])
    with pytest.raises(BadInput, match=r"MD5 is wrong .*data_batch_3.*delete it and download it again") as error:
        load_dataset(CONFIG, size=32, data_dir=tiny, offline=True)
    one_line(error)


def test_a_missing_file_is_named(tiny: Path) -> None:
    (tiny / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(BadInput, match=r"a file is missing \(.*data_batch_3\)"):
        load_dataset(CONFIG, size=32, data_dir=tiny, offline=True)


def test_another_file_of_the_same_name_hides_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "batches.meta").write_bytes(b"mine")
    monkeypatch.setenv("RESFIT_DATA_DIR", str(tiny))
    assert len(load_dataset(CONFIG, size=32, data_dir=stray, offline=True).test) > 0
    inner = load_dataset(CONFIG, size=32, data_dir=tiny / "cifar-10-batches-py", offline=True)
    assert len(inner.test) > 0


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.target}'",)


def test_a_hostile_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = contents("cifar10"), tmp_path / "ran"
    made["data_batch_2"] = pickle.dumps({"data": Attack(ran)}, protocol=2)
    expect(monkeypatch, "cifar10", made)
    folder = write(tmp_path / "cifar-10-batches-py", made)
    with pytest.raises(BadInput, match=r"cannot be unpickled \(.*data_batch_2: it asks for \w+.system\)"):
        load_dataset(CONFIG, size=32, data_dir=tmp_path, offline=True)
    assert not ran.exists()
    pickle.loads((folder / "data_batch_2").read_bytes())
    assert ran.exists(), "the attack works on a pickle that is not restricted"


@pytest.mark.parametrize(
    "content",
    [
        pairs(labels=labels([0] * N)),
        pairs(labels=labels([0] * (N - 1)), data=array(bytes(N * 3072), N)),
        pairs(labels=labels([5] * N), data=array(bytes(N * 3072), N)),
        pairs(labels=labels([0] * N), data=labels([1, 2, 3])),
        b"\x80\x02].",
    ],
    ids=["no data", "a label short", "a label too high", "a list", "no dict"],
)
def test_what_is_no_batch_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {**contents("cifar10"), "data_batch_5": content}
    expect(monkeypatch, "cifar10", made)
    write(tmp_path / "cifar-10-batches-py", made)
    with pytest.raises(BadInput, match=r"not a batch of CIFAR10 \(.*data_batch_5\)"):
        load_dataset(CONFIG, size=32, data_dir=tmp_path, offline=True)


def test_an_archive_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = contents("cifar10")
    archive = tar("cifar-10-batches-py", made)
    expect(monkeypatch, "cifar10", made, archive)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(archive)
    lines: list[str] = []
    first = load_dataset(CONFIG, size=32, data_dir=tmp_path, offline=True, progress=lines.append)
    assert lines == [f"unpacking {path}"]
    assert path.exists() and (tmp_path / "cifar-10-batches-py" / "test_batch").exists()
    assert load_dataset(CONFIG, size=32, data_dir=tmp_path, offline=True, progress=lines.append).digest == first.digest
    assert len(lines) == 1


def test_a_truncated_archive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Callable[..., str]
) -> None:
    made = contents("cifar10")
    archive = tar("cifar-10-batches-py", made)
    expect(monkeypatch, "cifar10", made, archive)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive[: len(archive) // 2])
    with pytest.raises(BadInput, match=r"damaged archive, its MD5 is wrong \(.*tar.gz\): delete it") as error:
        load_dataset(CONFIG, size=32, data_dir=tmp_path, offline=True)
    one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


def test_the_official_md5s_are_torchvisions() -> None:
    from torchvision import datasets

    for files in cifar.FILES.values():
        theirs = getattr(datasets, files.title)
        listed = dict([*theirs.train_list, *theirs.test_list, (theirs.meta["filename"], theirs.meta["md5"])])
        assert files.md5 == listed
        assert (files.archive, files.archive_md5) == (theirs.filename, theirs.tgz_md5)
        assert files.folder == theirs.base_folder
        assert files.names.decode() == theirs.meta["key"]
        assert list(files.train) == [name for name, _ in theirs.train_list]


def no_socket(*args: object, **kwargs: object) -> None:
    raise AssertionError("a socket was opened")


@pytest.mark.parametrize("switch", ["argument", "1", "true", "Yes"])
def test_offline_opens_no_socket(
    switch: str, tmp_path: Path, own_places: Path, monkeypatch: pytest.MonkeyPatch, one_line: Callable[..., str]
) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setenv("RESFIT_DATA_DIR", str(tmp_path / "variable"))
    if switch != "argument":
        monkeypatch.setenv("RESFIT_OFFLINE", switch)
    with pytest.raises(BadInput, match=r"CIFAR10 not found, and downloads are off .*--data-dir") as error:
        load_dataset(CONFIG, size=32, data_dir=tmp_path / "given", offline=switch == "argument")
    line = one_line(error)
    for place in (tmp_path / "given", tmp_path / "variable", own_places):
        assert str(place) in line
    monkeypatch.delenv("RESFIT_OFFLINE", raising=False)
    with pytest.raises(AssertionError, match="a socket was opened"):
        load_dataset(CONFIG, size=32, data_dir=tmp_path / "given")


@pytest.mark.cifar10
def test_the_real_cifar10(real_cifar10: Path, check_contract: Callable[..., None]) -> None:
    data = load_dataset(DataConfig(), size=32, data_dir=real_cifar10, offline=True)
    check_contract(data, size=32, channels=3, counts=(45_000, 5_000, 10_000))
    assert data.train.labels.bincount().tolist() == [4500] * 10
    assert data.val.labels.bincount().tolist() == [500] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.classes[0] == "airplane" and data.classes[9] == "truck"
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-3)
    assert data.duplicates == {"train/val": 0, "train/test": 0, "val/test": 0}


@pytest.mark.cifar10
def test_the_real_cifar10_agrees_with_torchvision(real_cifar10: Path) -> None:
    from torchvision.datasets import CIFAR10

    ours = load_dataset(DataConfig(val=0), size=32, data_dir=real_cifar10, offline=True)
    root = next(real_cifar10.glob("**/data_batch_1")).parent.parent
    for part, train in ((ours.train, True), (ours.test, False)):
        theirs = CIFAR10(root, train=train)
        assert torch.equal(part.images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
        assert part.labels.tolist() == theirs.targets
