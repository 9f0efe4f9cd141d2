"""Load an image folder: one subfolder per class, or such folders within train/, test/ and optionally val/.

The images are decoded once, in the order train, val, test, into one array in the cache folder. The array is
memory-mapped and the splits are slices of it, so a data set need not fit into memory. If val/ is missing, the
validation images swap places with those at the end of train, in this process's memory only, so that another split needs
no other file. Small data sets are cached too, as decoding even a thousand photographs takes a minute.

Training images are ordered by a hash of their names: classes are mixed, so that any prefix is a fair sample, and adding
files later leaves nearly all test images in the test set. Test images are ordered by name.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resfit.data.cache import cached_array, forget_unused
from resfit.data.decode import EXTENSIONS, decode_all
from resfit.data.images import Images, Source
from resfit.data.locations import Locations
from resfit.data.split import stratified_split, val_count
from resfit.errors import BadInput
from resfit.files import cache_dir
from resfit.machine import free_bytes
from resfit.recipe import DataConfig

_ORDER = ("train", "val", "test")
_SPLITS = {name: name for name in _ORDER} | {"valid": "val", "validation": "val"}
_ALIASES = {"training": "train", "testing": "test"}  # used only if no folder has one of the names above
_TEST_PART = 0.2

Classes = Mapping[str, Sequence[Path]]  # class name to image files
Samples = list[tuple[Path, int]]  # (image file, label)


def load_folder(
    config: DataConfig, locations: Locations, *, size: int, channels: int, needed: Sequence[str] = ("train", "test")
) -> Source:
    """Load a folder's images as uint8 [N, channels, size, size], split as its subfolders are, or by `config`.

    Without train/ and test/, a fifth of each class becomes the test set; a folder with one of them must have all that
    are `needed`. Raises BadInput for anything that would spoil the training: unreadable images, empty classes, classes
    that differ between splits.
    """
    root = _root(locations)
    folders, notes = _layout(root, needed)
    parts, names = _found(folders)
    notes += _ignored(folders, parts)
    splits = _split({name: _samples(part, names, root) for name, part in parts.items()})
    taken = _validating(splits["train"], config) if splits["train"] and "val" not in parts else None
    if "val" in parts and config.val:
        notes.append(f"{folders['val'].name}/ is the validation set; data.val is not used")
    files = [path for split in splits.values() for path, _ in split]
    pixels = torch.from_numpy(_pixels(files, root, locations, size=size, channels=channels))
    sets = {}
    for name, images in zip(splits, torch.split(pixels, [len(split) for split in splits.values()]), strict=True):
        sets[name] = Images(images=images, labels=_labels(splits[name]))
    if taken is not None:
        sets["train"], sets["val"] = _divided(sets["train"], taken)
    tested = _digest([path for path, _ in splits["test"]], root)
    return Source(classes=tuple(names), **sets, notes=tuple(notes), test_drawn="all" in parts, test_digest=tested)


def folder_classes(locations: Locations) -> tuple[str, ...]:
    """Return the class names without reading the images; raises BadInput as `load_folder` does."""
    folders, _ = _layout(_root(locations))
    return tuple(_found(folders)[1])


def folder_has_val(locations: Locations) -> bool:
    """Return whether the folder has its own validation images; raises BadInput as `load_folder` does."""
    return "val" in _layout(_root(locations))[0]


def _found(folders: Mapping[str, Path]) -> tuple[dict[str, Classes], list[str]]:
    """Return each split's image files by class, and the sorted class names."""
    parts = {name: _classes(folder) for name, folder in folders.items()}
    _check(parts, folders)
    return parts, sorted(next(iter(parts.values())))


def _root(locations: Locations) -> Path:
    if not locations.given:
        raise BadInput("no image folder was given (data): give one with --data-dir or RESFIT_DATA_DIR")
    root = locations.given[0]
    if not root.is_dir():
        raise BadInput(f"no such folder ({root}): give one with --data-dir")
    return root


def _layout(root: Path, needed: Sequence[str] = ("train", "test")) -> tuple[dict[str, Path], list[str]]:
    """Return the folders of the splits, or {"all": root}, and notes on how folder names were interpreted."""
    inside = _folders(root)
    found: dict[str, list[Path]] = {}
    for split in _ORDER:
        named, alias = ([f for f in inside if names.get(f.name.lower()) == split] for names in (_SPLITS, _ALIASES))
        found |= {split: named or alias} if named or alias else {}
    taken = [folder for folders in found.values() for folder in folders]
    others = [folder.name for folder in inside if folder not in taken]
    if not ({"train", "test"} <= set(found) or (found and not others) or _shared(taken)):
        return {"all": root}, _like_splits(inside)
    for folders in found.values():
        if len(folders) > 1:
            raise BadInput(f"{folders[0].name}/ and {folders[1].name}/ mean the same split ({root}): keep one of them")
    splits = {split: folder for split, (folder,) in found.items()}
    beside = ", ".join(f"{folder.name}/" for folder in splits.values())
    if missing := [split for split in needed if split not in splits]:
        raise BadInput(f"no {missing[0]}/ beside {beside} ({root}): add it, or give one folder of class folders")
    notes = [f"{folder.name}/ is read as {split}/" for split, folder in splits.items() if folder.name != split]
    return splits, notes + [f"{name}/ beside {beside} is not used" for name in others]


def _like_splits(folders: Sequence[Path]) -> list[str]:
    """Return a note if the class folders all contain the same subfolders and no images: they may be meant as splits."""
    if any(is_image(path) for folder in folders for path in folder.iterdir()):
        return []
    shared = _shared(folders)
    names, inner = (", ".join(f"{name}/" for name in each) for each in ((f.name for f in folders), sorted(shared)))
    told = f"{names} are used as classes, but each contains {inner}: splits must be named train/, val/ and test/"
    return [told] if len(shared) > 1 else []


def _shared(folders: Sequence[Path]) -> set[str]:
    """Return the names of the subfolders that all of several folders have, as splits have the same classes."""
    return set.intersection(*({inner.name for inner in _folders(f)} for f in folders)) if len(folders) > 1 else set()


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _visible(path))


def visible_files(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """Return the visible files in `folder` and its subfolders, ordered by name, including broken links.

    Linked folders are followed, unless they lead back to `above`, the folders that led here, or around them.
    """
    here = folder.resolve()
    if any(path.is_relative_to(here) for path in above):
        return []
    found: list[Path] = []
    for path in sorted(filter(_visible, folder.iterdir())):
        if path.is_file() or (path.is_symlink() and not path.exists()):  # a broken link is reported, not ignored
            found.append(path)
        elif path.is_dir():
            found += visible_files(path, (*above, here))
    return found


def is_image(path: Path) -> bool:
    """Return whether the file name has an extension of a readable image format."""
    return path.suffix.lower() in EXTENSIONS


def _classes(folder: Path) -> Classes:
    return {path.name: list(filter(is_image, visible_files(path))) for path in _folders(folder)}


def _check(parts: Mapping[str, Classes], folders: Mapping[str, Path]) -> None:
    first, names = next(iter(folders.values())), set(next(iter(parts.values())))
    if unreadable := [name for classes in parts.values() for name in classes if not _is_text(name)]:
        raise BadInput(f"a class name is not valid UTF-8 ({first}, {unreadable[0]!a}): rename the folder")
    for split, classes in parts.items():
        if not any(classes.values()):
            raise BadInput(f"no images in class folders ({folders[split]}): give each class a folder with its images")
        empty = [name for name, files in classes.items() if not files]
        if empty:
            raise BadInput(f"classes without images: {', '.join(empty)} ({folders[split]}): add images, or remove them")
        if set(classes) != names:
            differing = ", ".join(sorted(set(classes) ^ names))
            raise BadInput(
                f"{first.name}/ and {folders[split].name}/ differ in classes: {differing} ({first.parent}): "
                "give all splits the same class folders"
            )
    if len(names) < 2:
        raise BadInput(f"only one class: {', '.join(names)} ({first}): give at least two class folders")


def _is_text(name: str) -> bool:
    """Return whether a file name is valid UTF-8."""
    return name.encode(errors="replace").decode() == name


def _ignored(folders: Mapping[str, Path], parts: Mapping[str, Classes]) -> list[str]:
    """Return a note on files that are ignored: other file types, or outside the class folders."""
    taken = sum(len(files) for classes in parts.values() for files in classes.values())
    inside = sum(len(visible_files(path)) for folder in folders.values() for path in _folders(folder))
    stray = sum(path.is_file() and _visible(path) for folder in folders.values() for path in folder.iterdir())
    count = inside + stray - taken
    return [f"{count} other file{'s' if count > 1 else ''} ignored"] if count else []


def _samples(classes: Classes, names: Sequence[str], root: Path) -> Samples:
    samples = [(path, label) for label, name in enumerate(names) for path in classes[name]]
    return sorted(samples, key=lambda sample: _place(sample[0].relative_to(root)))


def _place(path: Path) -> bytes:
    return hashlib.sha256(os.fsencode(path.as_posix())).digest()


def _split(parts: Mapping[str, Samples]) -> dict[str, Samples]:
    """Return train, val and test, in this order, independent of the recipe; val is empty without a folder for it."""
    train, test = _take_test(parts["all"]) if "all" in parts else (parts.get("train", []), parts["test"])
    return {"train": train, "val": parts.get("val", []), "test": sorted(test)}


def _take_test(samples: Samples) -> tuple[Samples, Samples]:
    """Take each class's first fifth for testing, whatever data.split_seed is; a class's only image stays in train."""
    sizes = Counter(label for _, label in samples)
    if set(sizes.values()) == {1}:
        raise BadInput("with one image per class, none is left to test on (data): add images")
    wanted = {label: min(size - 1, max(1, round(_TEST_PART * size))) for label, size in sizes.items()}
    seen: Counter[int] = Counter()
    train: Samples = []
    test: Samples = []
    for path, label in samples:
        seen[label] += 1
        (test if seen[label] <= wanted[label] else train).append((path, label))
    return train, test


def _digest(files: Sequence[Path], root: Path) -> str:
    """Return the SHA-256 (hex) of the files' sizes and paths relative to `root`, which include their classes."""
    lines = (os.fsencode(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n") for path in files)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _labels(samples: Samples) -> Tensor:
    return torch.tensor([label for _, label in samples], dtype=torch.int64)


def _validating(samples: Samples, config: DataConfig) -> Tensor:
    """Return the indices of the training images that become validation images."""
    return stratified_split(_labels(samples), val_count(config.val, len(samples)), config.split_seed)[1]


def _divided(part: Images, taken: Tensor) -> tuple[Images, Images]:
    """Split `part` into two slices: all images except those at `taken`, and these, swapped with images at the end."""
    start = len(part) - len(taken)
    end = torch.arange(start, len(part))
    holes, staying = taken[taken < start], end[~torch.isin(end, taken)]
    for values in (part.images, part.labels):
        values[torch.cat((holes, staying))] = values[torch.cat((staying, holes))]
    images, labels = (values.split([start, len(taken)]) for values in (part.images, part.labels))
    return Images(images=images[0], labels=labels[0]), Images(images=images[1], labels=labels[1])


def _pixels(files: Sequence[Path], root: Path, locations: Locations, *, size: int, channels: int) -> np.ndarray:
    """Return all files' pixels, uint8 [N, channels, size, size], from the cache if no file has changed."""
    root_key, files_key = hashlib.sha256(os.fsencode(f"{root.resolve()} {size} {channels}")), hashlib.sha256(b"2")
    for path in files:
        facts = path.stat() if path.exists() else path.lstat()  # decoding reports missing files
        name = path.relative_to(root).as_posix()
        files_key.update(os.fsencode(f"\n{name} {facts.st_size} {facts.st_mtime_ns}"))
    prefix = root_key.hexdigest()[:16]
    cached = cache_dir() / "folders" / f"{prefix}-{files_key.hexdigest()[:32]}.npy"
    shape = (len(files), channels, size, size)
    needed, free = math.prod(shape), free_bytes()
    if free is not None and needed > free:
        locations.tell(
            f"the images take {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB of memory are free: "
            "they are read from disk during training, which is slower"
        )
    if not cached.exists():
        locations.tell(f"decoding {len(files):,} images (only once) into {cached}")
    pixels = cached_array(cached, shape, decode_all(files, root=root, size=size, channels=channels))
    forget_unused(set(cached.parent.glob(f"{prefix}-*.npy")) - {cached})  # of the folder's earlier content
    forget_unused(cached.parent.glob(".*.part"))  # left by killed processes
    return pixels
