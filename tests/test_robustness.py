"""Accuracy on damaged images and agreement with people, from the command line to the report; nothing is overwritten."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_recipe import TINY
from resfit.cli import main
from resfit.errors import BadInput
from resfit.fields import to_plain
from resfit.recipe import Recipe
from resfit.record import read_record
from resfit.report import render
from resfit.robustness import agreement, score_corruptions, score_humans
from resfit.run import train

LABELS = [0, 1] * 6  # of the test images, as the folder gives them: class by class
LABELS.sort()
KINDS = [{"kind": "impulse_noise", "group": "noise", "accuracy": [0.9, 0.7, 0.5, 0.3, 0.1]}]
KEPT = {"set": "resfit-corruptions-1", "seed": 0, "images": 12, "clean": 0.95, "mean": 0.5, "kinds": KINDS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells bright from dark stripes; its run folder, and the images beside it."""
    root = tmp_path_factory.mktemp("stripes")
    for part, count in (("train", 40), ("test", 6)):
        for name, level in (("bright", 190), ("dark", 60)):
            (root / "images" / part / name).mkdir(parents=True)
            for n in range(count):
                pixels = np.full((8, 8), level + n % 5, dtype=np.uint8)
                pixels[:: 2 + n % 3] -= 30
                Image.fromarray(pixels).save(root / "images" / part / name / f"{n}.png")
    recipe = {**TINY, "data": {"name": "folder", "val": 0}, "augment": {}, "train": {**TINY["train"], "batch_size": 16}}
    train(Recipe.from_dict(recipe), out=root, data_dir=root / "images")
    return root / "tiny" / "0"


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run folder of its own."""
    monkeypatch.setenv("RESFIT_DATA_DIR", str(trained.parents[1] / "images"))
    for name in ("record.json", "recipe.yaml", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    return tmp_path


def people(noise: float = 0.1, order: int = 1) -> np.ndarray:
    """Counts [12, 2] of people who mostly choose the label."""
    shares = (1 - noise) * np.eye(2)[LABELS] + noise / 2
    return np.rint(1000 * shares).astype(np.int64)[::order]


def saved(folder: Path, counts: np.ndarray) -> str:
    np.save(folder / "people.npy", counts)
    return str(folder / "people.npy")


def test_corruptions_are_scored_kept_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder), "--corruptions", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((folder / "robustness.json").read_text())
    assert printed["robustness"] == kept
    assert kept["clean"] == printed["accuracy"] == read_record(folder).test.accuracy
    assert len(kept["kinds"]) == 15
    values = [value for kind in kept["kinds"] for value in kind["accuracy"]]
    assert len(values) == 75
    assert kept["mean"] == pytest.approx(sum(values) / 75)
    assert kept["mean"] < kept["clean"]

    (folder / "record.json").rename(folder / "elsewhere.json")
    (folder / "robustness.json").unlink()
    assert to_plain(score_corruptions(folder)) == kept  # the same seed, the same scores
    assert not (folder / "robustness.json").exists()  # no record: no finished run to keep it with


def test_nothing_is_kept_of_another_network_or_other_data(folder: Path) -> None:
    (folder / "experiment.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    score_corruptions(folder / "experiment.safetensors")
    score_corruptions(folder, data="folder")
    assert not (folder / "robustness.json").exists()


def test_nothing_is_kept_of_other_images(folder: Path, trained: Path, tmp_path: Path) -> None:
    """Nor does what was kept of the run's own images stand in the way."""
    other = tmp_path / "other"
    shutil.copytree(trained.parents[1] / "images", other)
    next((other / "test" / "dark").iterdir()).unlink()
    assert score_corruptions(folder, data_dir=other).images == 11
    assert not (folder / "robustness.json").exists()
    (folder / "robustness.json").write_text(json.dumps(KEPT))
    assert score_corruptions(folder, data_dir=other).images == 11
    assert (folder / "robustness.json").read_text() == json.dumps(KEPT)


def test_the_page_shows_what_was_kept(folder: Path) -> None:
    (folder / "robustness.json").write_text(json.dumps(KEPT))
    page = render([read_record(folder)])
    assert "impulse noise" in page
    assert all(f">{value}<" in page for value in ("90.0", "70.0", "50.0", "30.0", "10.0"))
    assert 'href="#run-robustness"' in page
    assert KEPT["set"] in page


def test_a_second_measurement_is_refused_ahead_of_any_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "robustness.json").write_text(json.dumps(KEPT))
    assert main(["evaluate", str(folder), "--corruptions"]) == 2
    assert "already measured" in capsys.readouterr().err
    assert (folder / "robustness.json").read_text() == json.dumps(KEPT)


def test_agreement_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]]))
    shares = torch.tensor([[1.0, 0, 0], [0.5, 0, 0.5], [0.25, 0.25, 0.5]], dtype=torch.float64)
    found = agreement(logits, shares, torch.tensor([0, 2, 0]))
    assert found.agreement == pytest.approx(2 / 3)
    assert found.human_accuracy == pytest.approx(2 / 3)  # an even division counts for both
    crosses = [math.log(2), -(math.log(0.1) + math.log(0.3)) / 2, -0.5 * math.log(0.2) - 0.5 * math.log(0.6)]
    assert found.cross_entropy == pytest.approx(sum(crosses) / 3)
    assert found.human_entropy == pytest.approx((0 + math.log(2) + 1.5 * math.log(2)) / 3)


def test_people_are_compared_kept_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder), "--human", ""]) == 2
    assert "not an array of label counts" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--human", saved(folder, people())]) == 0
    assert "cross-entropy against human labels" in capsys.readouterr().out
    found = read_record(folder).human
    assert found is not None
    assert found.human_accuracy == 1.0
    assert found.agreement == read_record(folder).test.accuracy
    assert found.cross_entropy > found.human_entropy > 0
    assert 'href="#run-people"' in render([read_record(folder)])
    assert main(["evaluate", str(folder), "--human", str(folder / "people.npy")]) == 2
    assert "already measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (np.zeros((10, 10)), "label counts of 10 x 10 .*folder's test set needs 12 x 2"),
        (np.zeros((12, 2)), "at least one label per image"),
        (-people(), "not label counts"),
        (people() * np.nan, "not label counts"),
        (people(order=-1), r"people chose the label on [\d.]+ % of the images"),
        (np.array(["a"]), "not an array of label counts"),
        (np.array([{}]), "not an array of label counts"),
    ],
    ids=["shape", "nobody", "negative", "nan", "order", "text", "pickle"],
)
def test_a_file_that_does_not_fit_is_refused(folder: Path, counts: np.ndarray, line: str) -> None:
    with pytest.raises(BadInput, match=line):
        score_humans(folder, saved(folder, counts))
    assert not (folder / "human.json").exists()


def test_a_missing_or_foreign_file_is_named(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"no such file \(nowhere.npy\)"):
        score_humans(folder, "nowhere.npy")
    with pytest.raises(BadInput, match=r"recipe\.yaml"):
        score_humans(folder, folder / "recipe.yaml")


@pytest.mark.parametrize("content", ["", "[1]", '{"set": 3}'])
def test_a_damaged_file_beside_the_record_is_named(folder: Path, content: str) -> None:
    (folder / "robustness.json").write_text(content)
    with pytest.raises(BadInput, match="damaged record"):
        read_record(folder)
