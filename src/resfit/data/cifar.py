"""Load CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official Python files."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resfit.data.download import download, extract, read_checked
from resfit.data.images import Images, Source
from resfit.data.locations import Locations
from resfit.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class CifarFiles:
    """Files of one data set. `md5` lists every file in the folder; `labels` and `names` are keys in the pickles."""

    title: str
    folder: str
    archive: str
    archive_md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    md5: Mapping[str, str]
    labels: bytes
    names: bytes


FILES = {
    "cifar10": CifarFiles(
        title="CIFAR10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
        test=("test_batch",),
        meta="batches.meta",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        labels=b"labels",
        names=b"label_names",
    ),
    "cifar100": CifarFiles(
        title="CIFAR100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        train=("train",),
        test=("test",),
        meta="meta",
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
        labels=b"fine_labels",
        names=b"fine_label_names",
    ),
}


def load_cifar(name: str, locations: Locations) -> Source:
    """Return the 50,000 training and 10,000 test images of "cifar10" or "cifar100", 3 x 32 x 32."""
    files = FILES[name]
    folder = _find(files, locations) or _fetch(files, locations)
    meta = _unpickle(folder / files.meta, files)
    try:
        classes = tuple(name.decode("ascii") for name in meta[files.names])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise BadInput(f"no class names in the file ({folder / files.meta}): delete it and download it again") from None
    return Source(
        classes=classes,
        train=_batches(folder, files.train, files, len(classes)),
        test=_batches(folder, files.test, files, len(classes)),
    )


def _find(files: CifarFiles, locations: Locations) -> Path | None:
    """Return the folder with the files, extracting the archive if only that is found; None if neither is found."""
    for place in locations.all:
        own = place if place.name == files.folder else place / files.folder
        if any((own / name).is_file() for name in files.md5):
            return own
        if all((place / name).is_file() for name in files.md5):  # any other folder may hold a file called "test"
            return place
    for archive in (place / files.archive for place in locations.all):
        if archive.is_file():
            locations.tell(f"unpacking {archive}")
            return extract(archive, files.folder, files.archive_md5)
    return None


def _fetch(files: CifarFiles, locations: Locations) -> Path:
    locations.require_network(files.title)
    from torchvision import datasets  # for the official URL

    archive = locations.download_dir / files.archive
    locations.tell(f"downloading {files.title} to {archive.parent}")
    download(getattr(datasets, files.title).url, archive, files.archive_md5)
    with contextlib.suppress(FileNotFoundError):  # another process downloaded it too, and was first
        extract(archive, files.folder, files.archive_md5)
        archive.unlink()
    return archive.with_name(files.folder)


def _batches(folder: Path, names: Sequence[str], files: CifarFiles, classes: int) -> Images:
    batches = [_batch(folder / name, files, classes) for name in names]
    images = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in batches])
    return Images(images=torch.from_numpy(images), labels=torch.from_numpy(labels))


def _batch(path: Path, files: CifarFiles, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels, uint8 [N, 3072], and labels, int64 [N], of one batch file."""
    batch = _unpickle(path, files)
    try:
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[files.labels], dtype=np.int64)
        good = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072) and labels.ndim == 1
        good = good and bool(((labels >= 0) & (labels < classes)).all())
    except (KeyError, TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise BadInput(f"not a batch of {files.title} ({path}): delete it and download it again")
    return pixels, labels


def _unpickle(path: Path, files: CifarFiles) -> Any:
    content = read_checked(path, files.md5[path.name])
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise any exception
        reason = " ".join(str(error).split())
        raise BadInput(f"cannot be unpickled ({path}: {reason}): delete it and download it again") from None


_ALLOWED: dict[tuple[str, str], Any] = {
    # Taken from an array, as numpy 2 renamed the function's module.
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that builds only numpy arrays and plain containers and rejects every other global."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]
