"""Load data sets into memory: CIFAR-10, CIFAR-100, SVHN, scikit-learn's digits, and image folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resfit.data.cifar import load_cifar
from resfit.data.digits import load_digits
from resfit.data.folder import folder_classes, folder_has_val, load_folder
from resfit.data.images import Images, Source, channel_statistics, count_duplicates, digest, image_hashes, resized
from resfit.data.locations import Locations
from resfit.data.split import stratified_part, stratified_split, val_count
from resfit.data.svhn import load_svhn
from resfit.errors import BadInput
from resfit.machine import free_bytes, require_room
from resfit.recipe import NAMED_SETS, DataConfig

__all__ = ["Dataset", "Images", "class_names", "has_validation", "load_dataset", "stratified_split"]


_IMAGES = {"cifar10": 60_000, "cifar100": 60_000, "svhn": 99_289}  # numbers of images, 3 x 32 x 32 bytes each


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set in memory, split into train, val and test; `val` may be empty, `train` too if only test was needed.

    `mean` and `std` are per channel, of `train` only, on the 0..1 scale; () without training images. `digest` (SHA-256,
    hex) is equal for two runs that saw the same data in the same splits. `test_digest` is set for image folders only,
    and is equal if the test files are the same, at any image size. `duplicates` maps "train/val", "train/test" and
    "val/test" to the number of images of the second split that also occur in the first. `notes` are one-line remarks
    for the user. `test_drawn`: the test images were drawn from all images, because the data set has no test split of
    its own.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    duplicates: dict[str, int]
    notes: tuple[str, ...] = ()
    test_drawn: bool = False
    test_digest: str = ""

    def facts(self) -> dict[str, Any]:
        """Return what a run record stores about the data set."""
        return {
            "name": self.name,
            "digest": self.digest,
            "test_digest": self.test_digest,
            "n_train": len(self.train),
            "n_val": len(self.val),
            "n_test": len(self.test),
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "duplicates": self.duplicates,
            "notes": list(self.notes),
        }


def load_dataset(
    config: DataConfig,
    *,
    size: int,
    channels: int = 3,
    data_dir: Path | None = None,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
    test_only: bool = False,
) -> Dataset:
    """Load the data set that `config` names as images of `size` x `size` pixels with `channels` channels.

    Looks in `data_dir`, RESFIT_DATA_DIR and the user's cache folder, then downloads, unless `offline` or
    RESFIT_OFFLINE=1 forbids it. `progress` receives one-line messages. With `test_only`, an image folder may consist of
    test/ alone. Raises BadInput if the data cannot be found or used, or would not fit into free memory.
    """
    require_room(config.name, _needed_bytes(config.name, size), free_bytes())
    locations = Locations(data_dir=data_dir, offline=offline, tell=progress or (lambda line: None))
    try:
        source = _source(config, locations, size=size, channels=channels, test_only=test_only)
    except OSError as error:
        reason, where = error.strerror or error, error.filename or config.name
        raise BadInput(f"{reason} ({where}): check the path, its permissions and the free space") from None
    return _described(config.name, source, _parts(source, config, size))


def class_names(config: DataConfig, data_dir: Path | None = None) -> tuple[str, ...] | None:
    """Return the class names of an image folder without reading its images; None for other data sets.

    Raises BadInput if the folder does not exist.
    """
    if config.name != "folder":
        return None
    return folder_classes(Locations(data_dir=data_dir, offline=True, tell=lambda line: None))


def has_validation(config: DataConfig, data_dir: Path | None = None) -> bool:
    """Return whether there will be validation images: taken from the training images, or the image folder's own.

    Raises BadInput if the folder does not exist.
    """
    if config.val or config.name != "folder":
        return config.val > 0
    return folder_has_val(Locations(data_dir=data_dir, offline=True, tell=lambda line: None))


def _needed_bytes(name: str, size: int) -> int:
    """Return the bytes needed for a data set of known size: loaded, split, resized. Folders are memory-mapped: 0."""
    resized_pixels = 0 if size == 32 else size * size
    return _IMAGES.get(name, 0) * 3 * (2 * 32 * 32 + resized_pixels)


def _source(config: DataConfig, locations: Locations, *, size: int, channels: int, test_only: bool) -> Source:
    _, allowed = NAMED_SETS.get(config.name, (0, (1, 3)))
    if channels not in allowed:
        advice = " or ".join(map(str, allowed))
        raise BadInput(f"{config.name} has no {channels}-channel images (spec.input.channels): give {advice}")
    if config.name == "digits":
        return load_digits(channels)
    if config.name == "folder":
        needed = ("test",) if test_only else ("train", "test")
        return load_folder(config, locations, size=size, channels=channels, needed=needed)
    return load_svhn(locations) if config.name == "svhn" else load_cifar(config.name, locations)


def _parts(source: Source, config: DataConfig, size: int) -> dict[str, Images]:
    train, val = source.train, source.val
    if val is None:
        train_index, val_index = stratified_split(train.labels, val_count(config.val, len(train)), config.split_seed)
        train, val = train.take(train_index), train.take(val_index)
    if config.fraction < 1 and len(train):
        train = train.take(stratified_part(train.labels, config.fraction, config.split_seed))
    return {"train": resized(train, size), "val": resized(val, size), "test": resized(source.test, size)}


def _described(name: str, source: Source, parts: dict[str, Images]) -> Dataset:
    hashes = {part: image_hashes(images.images) for part, images in parts.items()}
    duplicates = count_duplicates(hashes)
    mean, std = channel_statistics(parts["train"].images) if len(parts["train"]) else ((), ())
    return Dataset(
        name=name,
        classes=source.classes,
        **parts,
        mean=mean,
        std=std,
        digest=digest(parts, hashes),
        test_digest=source.test_digest,
        duplicates=duplicates,
        test_drawn=source.test_drawn,
        notes=source.notes + tuple(_remark(pair, count) for pair, count in duplicates.items() if count),
    )


def _remark(pair: str, count: int) -> str:
    first, second = pair.split("/")
    images = "image is" if count == 1 else "images are"
    return f"{count:,} {second} {images} also in {first}"
