"""A trained network is scored on the images that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.tiny_recipe import TINY
from resfit.errors import BadInput
from resfit.recipe import Recipe
from resfit.record import read_record
from resfit.run import train
from resfit.trained import evaluate


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty pictures of two classes, of which a fifth is drawn for testing."""
    folder = tmp_path / "images"
    for name, level in (("bright", 190), ("dark", 60)):
        (folder / name).mkdir(parents=True)
        for n in range(20):
            Image.fromarray(np.full((8, 8), level + n, dtype=np.uint8)).save(folder / name / f"{n}.png")
    return folder


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Path:
    recipe = {**TINY, "data": {"name": "folder", "val": 0.2}, "augment": {}}
    train(Recipe.from_dict({**recipe, "train": {"epochs": 1, "batch_size": 8}}), out=tmp_path, data_dir=images)
    return tmp_path / "tiny" / "0"


@pytest.mark.parametrize("data", [None, "folder"])
def test_the_test_images_of_its_own_folder_are_those_of_the_record(run: Path, images: Path, data: str | None) -> None:
    assert evaluate(run, data_dir=images, data=data).accuracy == read_record(run).test.accuracy


@pytest.mark.parametrize("data", [None, "folder"])
def test_others_drawn_from_a_changed_folder_are_refused(run: Path, images: Path, data: str | None) -> None:
    for n in range(20, 60):
        Image.fromarray(np.full((8, 8), 60 + n, dtype=np.uint8)).save(images / "dark" / f"{n}.png")
    with pytest.raises(BadInput, match="which may have used some of the test images"):
        evaluate(run, data_dir=images, data=data)


def test_a_folder_with_test_images_alone_is_scored(run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "test").symlink_to(images)
    scores = evaluate(run, data_dir=tmp_path / "new").per_class
    assert [score.support for score in scores] == [20, 20]
    with pytest.raises(BadInput, match="no train/ beside test/"):
        train(Recipe.from_yaml(run / "recipe.yaml"), seed=1, out=tmp_path, data_dir=tmp_path / "new")


def test_another_folder_that_sets_its_test_images_apart_is_scored(run: Path, images: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "apart").mkdir(exist_ok=True)
        (tmp_path / "apart" / part).symlink_to(images)
    scores = evaluate(run, data_dir=tmp_path / "apart", data="folder").per_class
    assert [score.support for score in scores] == [20, 20]
