"""The networks that come with the project work as they lie there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resfit
from helpers.places import ROOT
from resfit.cli import main
from resfit.demo import answer
from resfit.demo.drawings import drawings
from resfit.recipe import Recipe
from resfit.record import read_record

MODELS = ROOT / "results" / "models"
FOLDERS = sorted(MODELS.iterdir()) if MODELS.is_dir() else []

pytestmark = pytest.mark.skipif(not FOLDERS, reason="the results do not lie beside the tests")


def test_there_are_two_at_the_most_and_they_are_small() -> None:
    assert len(FOLDERS) <= 2
    assert all((folder / "model.safetensors").stat().st_size <= 10_000_000 for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_weights_record_and_recipe_belong_together(folder: Path) -> None:
    record, net = read_record(folder), resfit.load(folder)
    assert record.spec == net.spec.to_dict() == Recipe.from_yaml(folder / "recipe.yaml").spec.to_dict()
    assert record.params == resfit.cost(net.spec).params <= 5_000_000
    assert record.recipe == folder.name
    assert "weights rounded to bf16" in record.events[-1]
    card = (folder / "README.md").read_text()
    assert f"{100 * record.test.accuracy:.2f}" in card and "license: mit" in card
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in card


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_predict_works_out_of_the_box(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    assert main(["predict", str(folder), str(tmp_path / "noise.png"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "noise.png" in json.dumps(answer)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_knows_what_the_drawings_show(folder: Path) -> None:
    net = resfit.load(folder)
    found = drawings(net.info.classes, size=net.spec.input.size, channels=net.spec.input.channels)
    named = [next(iter(answer(net, pixels).probabilities)) for pixels, _ in found]
    assert len(found) == 8
    assert sum(given == name for given, (_, name) in zip(named, found, strict=True)) >= 7, named


@pytest.mark.slow
@pytest.mark.cifar10
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_evaluate_gives_the_record_s_accuracy(folder: Path, cifar10_dir: Path) -> None:
    record = read_record(folder)
    test = resfit.evaluate(folder, tta=record.protocol["tta_views"], data_dir=cifar10_dir)
    assert test.accuracy == pytest.approx(record.test.accuracy, abs=0.001)  # another processor rounds otherwise
    assert test.accuracy_tta == pytest.approx(record.test.accuracy_tta, abs=0.001)
