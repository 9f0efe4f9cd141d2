from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resfit.data import Dataset, Images, class_names, load_dataset
from resfit.errors import BadInput
from resfit.recipe import DataConfig

LEVELS = {"ant": 40, "bee": 120, "cat": 200}  # a class's images are about this bright


def write_images(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """A folder of class folders, with images that are all different and as bright as their class."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = LEVELS[name] + random.integers(-20, 20, (12, 10, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:03}.png")
    return folder


def load(folder: Path, val: float = 0.25, size: int = 8, channels: int = 3, **options: object) -> Dataset:
    config = DataConfig(name="folder", val=val, **options)  # type: ignore[arg-type]
    return load_dataset(config, size=size, channels=channels, data_dir=folder, offline=True)


def assert_labels_fit(data: Dataset) -> None:
    """Each image has its own class's label."""
    for part in (data.train, data.val, data.test):
        levels = torch.tensor([LEVELS[name] for name in data.classes])[part.labels]
        assert ((part.images.float().mean((1, 2, 3)) - levels).abs() < 15).all()


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return write_images(tmp_path / "flat", {"bee": 10, "ant": 20, "cat": 10})


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    for seed, (part, count) in enumerate({"train": 8, "val": 3, "test": 4}.items()):
        write_images(tmp_path / "parted" / part, dict.fromkeys(LEVELS, count), seed)
    return tmp_path / "parted"


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_contract_without_splits(flat: Path, channels: int, check_contract: Callable[..., None]) -> None:
    data = load(flat, channels=channels)
    check_contract(data, size=8, channels=channels, counts=(24, 8, 8))
    assert data.classes == ("ant", "bee", "cat") and data.notes == ()
    assert data.test.labels.bincount().tolist() == [4, 2, 2]
    assert data.val.labels.bincount().tolist() == [4, 2, 2]
    assert_labels_fit(data)


def test_folder_contract_with_splits(parted: Path, check_contract: Callable[..., None]) -> None:
    data = load(parted)
    check_contract(data, size=8, channels=3, counts=(24, 9, 12))
    assert data.notes == ("val/ is the validation set; data.val is not used",)
    assert_labels_fit(data)


def test_the_classes_are_known_ahead(flat: Path, parted: Path) -> None:
    for folder in (flat, parted):
        assert class_names(DataConfig(name="folder"), folder) == ("ant", "bee", "cat")
    assert class_names(DataConfig(name="cifar10"), flat) is None
    with pytest.raises(BadInput, match="no such folder"):
        class_names(DataConfig(name="folder"), flat / "nowhere")
    shutil.rmtree(parted / "test" / "bee")
    with pytest.raises(BadInput, match="differ in classes: bee"):
        class_names(DataConfig(name="folder"), parted)


def test_its_own_validation_set_stays_with_val_0(parted: Path) -> None:
    data = load(parted, val=0)
    assert len(data.val) == 9 and data.notes == ()


def test_without_val_the_training_part_is_split(parted: Path) -> None:
    shutil.rmtree(parted / "val")
    data = load(parted, val=6)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 6, 12)
    assert len(load(parted, val=0).train) == 24


@pytest.mark.parametrize("alias", ["valid", "validation", "Val"])
def test_other_names_of_val_are_taken_and_told(parted: Path, alias: str) -> None:
    (parted / "val").rename(parted / alias)
    data = load(parted, val=0)
    assert len(data.val) == 9 and data.notes == (f"{alias}/ is read as val/",)


def test_two_validation_folders_are_refused(parted: Path) -> None:
    shutil.copytree(parted / "val", parted / "valid")
    with pytest.raises(BadInput, match=r"val/ and valid/ mean the same split \(.*\): keep one of them"):
        load(parted)


def test_two_folders_of_one_name_are_refused(parted: Path) -> None:
    """Where the file system tells Train from train."""
    shutil.copytree(parted / "train", parted / "Train")
    with pytest.raises(BadInput, match=r"Train/ and train/ mean the same split \(.*\): keep one of them"):
        load(parted)


def test_training_and_testing_are_splits(parted: Path) -> None:
    whole = load(parted)
    for name in ("train", "test"):
        (parted / name).rename(parted / f"{name.capitalize()}ing")
    found = load(parted)
    assert found.classes == whole.classes and len(found.test) == len(whole.test)
    assert found.notes[:2] == ("Training/ is read as train/", "Testing/ is read as test/")


@pytest.mark.parametrize("name", ["unlabeled", "dev", "training"])
def test_a_folder_beside_the_splits_is_told_of(parted: Path, name: str) -> None:
    shutil.copytree(parted / "test", parted / name)
    assert f"{name}/ beside train/, val/, test/ is not used" in load(parted).notes


def test_splits_without_a_test_set_are_known_beside_other_folders(parted: Path) -> None:
    (parted / "test").rename(parted / "unlabelled")
    with pytest.raises(BadInput, match=r"no test/ beside train/, val/ "):
        load(parted)


def test_classes_that_look_like_splits_are_told_of(parted: Path) -> None:
    shutil.rmtree(parted / "val")
    for old, new in (("train", "first"), ("test", "second")):
        (parted / old).rename(parted / new)
    found = load(parted)
    told = "first/, second/ are used as classes, but each contains ant/, bee/, cat/: splits must be named train/, val/ "
    assert found.classes == ("first", "second") and found.notes == (f"{told}and test/",)


def test_a_class_whose_name_is_no_text_is_refused(flat: Path) -> None:
    """As of an archive from a machine of another encoding."""
    (flat / "ant").rename(flat / os.fsdecode(b"\xe9"))
    with pytest.raises(BadInput, match=r"^a class name is not valid UTF-8 \(.*'.udce9'\): rename the folder$"):
        load(flat)


def test_a_test_set_is_known_by_its_files(parted: Path, tmp_path: Path) -> None:
    first = load(parted)
    copied = shutil.copytree(parted, tmp_path / "copied")
    (copied / "train" / "ant" / "000.png").unlink()
    assert load(copied).test_digest == first.test_digest != "" and load(copied).digest != first.digest
    (copied / "test" / "ant" / "000.png").unlink()
    assert load(copied).test_digest != first.test_digest


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_split_is_named(parted: Path, missing: str) -> None:
    shutil.rmtree(parted / missing)
    with pytest.raises(BadInput, match=rf"no {missing}/ beside \w+/, \w+/ \("):
        load(parted)


def test_a_class_may_be_called_train(flat: Path) -> None:
    (flat / "bee").rename(flat / "train")
    assert load(flat).classes == ("ant", "cat", "train")


def test_the_seed_moves_validation_but_never_the_test_set(flat: Path) -> None:
    first, again, other = load(flat), load(flat), load(flat, split_seed=1)
    assert first.digest == again.digest != other.digest
    assert torch.equal(first.test.images, other.test.images)
    assert not torch.equal(first.val.images, other.val.images)


def test_hidden_and_other_files_are_left_out(flat: Path) -> None:
    plain = load(flat)
    image = (flat / "ant" / "000.png").read_bytes()
    for name in (".hidden/a.png", "__MACOSX/a.png", "ant/.a.png", "ant/.thumbs/a.png", "ant/__MACOSX/a.png"):
        (flat / name).parent.mkdir(exist_ok=True)
        (flat / name).write_bytes(image)
    data = load(flat)
    assert data.digest == plain.digest and data.notes == ()
    for name in ("ant/notes.txt", "ant/a.svg", "README.md", "stray.png"):
        (flat / name).write_bytes(image)
    data = load(flat)
    assert data.digest == plain.digest and data.notes == ("4 other files ignored",)


def test_images_in_folders_within_a_class_count(flat: Path) -> None:
    (flat / "ant" / "deep" / "er").mkdir(parents=True)
    (flat / "ant" / "019.png").rename(flat / "ant" / "deep" / "er" / "x.PNG")
    data = load(flat)
    assert len(data.train) + len(data.val) + len(data.test) == 40
    assert_labels_fit(data)


def test_links_round_in_a_circle_end(flat: Path) -> None:
    (flat / "ant" / "again").symlink_to(flat / "ant", target_is_directory=True)
    assert len(load(flat, val=0).train) == 32


def test_linked_folders_within_a_class_are_followed(flat: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "more", {"ant": 5}, seed=1)
    (flat / "ant" / "more").symlink_to(tmp_path / "more" / "ant", target_is_directory=True)
    (flat / "bee" / "all").symlink_to(flat, target_is_directory=True)  # would bring the other classes' images
    data = load(flat, val=0)
    assert len(data.train) + len(data.test) == 45
    assert int((torch.cat((data.train.labels, data.test.labels)) == 0).sum()) == 25


def test_links_that_lead_nowhere_are_named(flat: Path, own_places: Path) -> None:
    (flat / "ant" / "lost.png").symlink_to(flat / "gone.png")
    with pytest.raises(BadInput, match=r"1 of 41 images are unreadable \(ant/lost.png, no such file or directory\)"):
        load(flat)


def test_a_class_folder_may_be_a_link(flat: Path, tmp_path: Path) -> None:
    (flat / "ant").rename(tmp_path / "elsewhere")
    (flat / "ant").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(load(flat, val=0).train) == 32


def refuse_empty_class(parted: Path) -> None:
    (parted / "train" / "dog").mkdir()


def refuse_no_images(parted: Path) -> None:
    shutil.rmtree(parted / "test")
    (parted / "test").mkdir()


def refuse_differing(parted: Path) -> None:
    (parted / "test" / "cat").rename(parted / "test" / "dog")


def refuse_missing(parted: Path) -> None:
    shutil.rmtree(parted / "val" / "bee")


def refuse_one_class(parted: Path) -> None:
    for part in ("train", "val", "test"):
        shutil.rmtree(parted / part / "ant")
        shutil.rmtree(parted / part / "bee")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (refuse_empty_class, r"classes without images: dog \(.*train\)"),
        (refuse_no_images, r"no images in class folders \(.*test\)"),
        (refuse_differing, r"train/ and test/ differ in classes: cat, dog \("),
        (refuse_missing, r"train/ and val/ differ in classes: bee \("),
        (refuse_one_class, r"only one class: cat \("),
    ],
)
def test_what_would_spoil_the_training_is_refused(
    parted: Path, spoil: Callable[[Path], None], message: str, one_line: Callable[..., str]
) -> None:
    spoil(parted)
    with pytest.raises(BadInput, match=message) as error:
        load(parted)
    one_line(error)


@pytest.mark.parametrize("content", [[], ["stray.png"]])
def test_a_folder_without_class_folders_is_refused(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadInput, match="no images in class folders"):
        load(tmp_path)


def test_classes_too_small_to_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none is left to test on"):
        load(write_images(tmp_path / "one", {"ant": 1, "bee": 1}))
    with pytest.raises(BadInput, match=r"2 of 3 images for validation leave too few to train on all 2 classes"):
        load(write_images(tmp_path / "few", {"ant": 2, "bee": 3}), val=2)


def test_the_only_training_image_of_a_class_stays_in_training(tmp_path: Path) -> None:
    data = load(write_images(tmp_path / "few", {"ant": 2, "bee": 2, "cat": 30}), val=0.5)
    assert set(data.train.labels.tolist()) == {0, 1, 2}
    assert set(data.val.labels.tolist()) == {2}


def test_classes_are_mixed_where_they_are_trained_on(flat: Path) -> None:
    data = load(flat, val=0)
    assert set(data.train.labels[:8].tolist()) == {0, 1, 2}
    assert torch.equal(data.test.labels, data.test.labels.sort().values)  # as the files of people's labels have it


def test_more_images_leave_most_of_the_test_images_where_they_are(tmp_path: Path) -> None:
    def tested(folder: Path) -> set[bytes]:
        return {image.numpy().tobytes() for image in load(folder, val=0).test.images}

    folder = write_images(tmp_path / "some", {"ant": 100, "bee": 100})
    before = tested(folder)
    shutil.copy(folder / "bee" / "000.png", folder / "ant" / "0000.png")
    assert len(before) == 40 and len(before & tested(folder)) >= 39


def test_no_folder_given_or_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: Path) -> None:
    config = DataConfig(name="folder", val=0)
    with pytest.raises(BadInput, match=r"give one with --data-dir or RESFIT_DATA_DIR"):
        load_dataset(config, size=8)
    with pytest.raises(BadInput, match=r"no such folder \(.*nowhere\)"):
        load(tmp_path / "nowhere")
    monkeypatch.setenv("RESFIT_DATA_DIR", str(flat))
    assert len(load_dataset(config, size=8).train) == 32


def test_other_channel_counts_are_refused(flat: Path) -> None:
    with pytest.raises(BadInput, match=r"folder has no 2-channel images \(spec.input.channels\): give 1 or 3"):
        load(flat, channels=2)


def test_unreadable_images_of_all_splits_are_listed_together(parted: Path, own_places: Path) -> None:
    for name in ("train/ant/000.png", "val/bee/001.png", "test/cat/002.png"):
        (parted / name).write_bytes((parted / name).read_bytes()[:60])
    with pytest.raises(BadInput) as error:
        load(parted)
    assert str(error.value).startswith("3 of 45 images are unreadable (train/ant/000.png, ")
    assert "; val/bee/001.png, " in str(error.value) and "; test/cat/002.png, " in str(error.value)
    assert not any(own_places.rglob("*.npy")) and not any(own_places.rglob("*.part"))


def test_duplicates_across_the_splits_are_told(parted: Path) -> None:
    shutil.copy(parted / "train" / "ant" / "000.png", parted / "test" / "ant" / "copy.png")
    data = load(parted, val=0)
    assert data.duplicates == {"train/val": 0, "train/test": 1, "val/test": 0}
    assert data.notes == ("1 test image is also in train",)


def test_images_are_decoded_once(flat: Path, own_places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(flat)
    assert len(list(own_places.rglob("*.npy"))) == 1

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("decoded again")

    with monkeypatch.context() as patched:
        patched.setattr("resfit.data.decode.decode", fail)
        assert load(flat).digest == first.digest
        with pytest.raises(BadInput, match="40 of 40 images are unreadable"):
            load(flat, size=9)
        with pytest.raises(BadInput, match="40 of 40 images are unreadable"):
            load(flat, channels=1)
        os.utime(flat / "ant" / "000.png", ns=(0, 0))
        with pytest.raises(BadInput, match="40 of 40 images are unreadable"):
            load(flat)
    assert load(flat).digest == first.digest


@pytest.mark.parametrize("own_val", [False, True])
def test_another_split_takes_no_other_decoding(
    flat: Path, parted: Path, own_places: Path, monkeypatch: pytest.MonkeyPatch, own_val: bool
) -> None:
    folder = parted if own_val else flat
    whole = load(folder, val=0)
    monkeypatch.setattr("resfit.data.decode.decode", None)
    seen = {load(folder, val=val, split_seed=seed).digest for val in (1, 0.25, 20) for seed in (0, 1)}
    assert len(seen) == (1 if own_val else 6)
    assert len(list(own_places.rglob("*.npy"))) == 1
    assert load(folder, val=0).digest == whole.digest, "no split is written into the file"


@pytest.mark.parametrize("val", [1, 8, 28])
def test_a_split_gives_each_image_away_once_with_its_label(flat: Path, val: int) -> None:
    def told(*parts: Images) -> list[tuple[bytes, int]]:
        pairs = (pair for part in parts for pair in zip(part.images, part.labels, strict=True))
        return sorted((image.numpy().tobytes(), int(label)) for image, label in pairs)

    whole, data = load(flat, val=0), load(flat, val=val)
    assert len(data.val) == val
    assert told(data.train, data.val) == told(whole.train)
    assert told(data.test) == told(whole.test)


def test_the_cache_of_earlier_content_is_deleted_after_a_week(flat: Path, own_places: Path) -> None:
    load(flat, size=9)
    load(flat)
    first = set(own_places.rglob("*.npy"))
    leftover = next(iter(first)).with_name(".x.npy.0000.1.part")
    leftover.write_bytes(b"")
    (flat / "ant" / "000.png").unlink()
    assert len(load(flat, val=0).train) + len(load(flat, val=0).test) == 39
    assert first < set(own_places.rglob("*.npy")) and leftover.exists(), "another machine may be using them"
    for path in (*own_places.rglob("*.npy"), leftover):
        os.utime(path, (0, 0))
    load(flat)
    assert len(set(own_places.rglob("*.npy")) & first) == 1, "that of size 9 is of another prefix"
    assert len(set(own_places.rglob("*.npy"))) == 2
    assert not leftover.exists()


def test_a_damaged_cache_is_made_anew(flat: Path, own_places: Path) -> None:
    first = load(flat)
    cached = next(own_places.rglob("*.npy"))
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    assert load(flat).digest == first.digest


def test_the_decoding_is_told_once(flat: Path) -> None:
    lines: list[str] = []
    for _ in range(2):
        load_dataset(DataConfig(name="folder", val=0), size=8, data_dir=flat, progress=lines.append)
    assert len(lines) == 1 and lines[0].startswith("decoding 40 images (only once) into ")


def test_a_cache_that_cannot_be_written_is_one_line(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Callable[..., str]
) -> None:
    (tmp_path / "a file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    with pytest.raises(BadInput, match=r"\(.*a file.*\): check the path, its permissions") as error:
        load(flat)
    one_line(error)
