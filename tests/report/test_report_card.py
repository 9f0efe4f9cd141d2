"""Model cards: what the hub reads, what people read, and a folder that loads from two files."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import resfit
from helpers.tiny_recipe import TINY
from resfit.cli import main
from resfit.errors import BadInput
from resfit.recipe import Recipe
from resfit.record import GivenModel, Robustness, RunRecord, read_record
from resfit.report.card import render_card, write_card
from resfit.report.words import percent
from resfit.run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one recipe."""
    out = tmp_path_factory.mktemp("runs")
    recipe = Recipe.from_dict({**TINY, "train": {"epochs": 1, "batch_size": 128, "precision": "fp32"}})
    for seed in (0, 1):
        train(recipe, seed=seed, out=out)
    return out / "tiny"


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "tiny")) / "0"


def header(card: str) -> dict[str, object]:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(text)


def test_the_header_says_what_the_hub_reads(run: Path) -> None:
    record, facts = read_record(run), header(write_card(run).read_text())
    assert (facts["license"], facts["library_name"]) == ("unknown", "resfit")
    assert facts["pipeline_tag"] == "image-classification"
    assert "datasets" not in facts  # the digits are not on the hub
    (entry,) = facts["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "tiny"
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"name": "Digits", "type": "digits", "split": "test"}
    assert [m["value"] for m in result["metrics"]] == [record.test.accuracy, record.test.accuracy_tta]
    cifar = replace(record, data={**record.data, "name": "cifar10"})
    assert header(render_card(cifar, [cifar]))["datasets"] == ["uoft-cs/cifar10"]


def test_the_card_holds_results_protocol_recipe_and_limits(run: Path) -> None:
    record, text = read_record(run), write_card(run).read_text()
    for part in ("n = 2 runs", "seeds 0, 1", "±", "used once", "## Limits", "resfit.predict", "license: unknown"):
        assert part in text, part
    assert f"{100 * record.test.accuracy:.2f}" in text
    _, _, recipe = text.partition("```yaml\n")
    assert Recipe.from_dict(yaml.safe_load(recipe.partition("```")[0])) == Recipe.from_dict(record.config)
    assert "calibrated on the validation split" in text
    assert not [line for line in text.splitlines() if "{{" in line or "{%" in line]


def test_one_run_is_said_to_be_one(run: Path) -> None:
    record = read_record(run)
    alone = render_card(replace(record, temperature=None), [record])
    assert "n = 1" in alone and "uncalibrated" in alone
    peeking = replace(record, protocol={**record.protocol, "peeking": True, "selection": "best-test"})
    assert "biased upwards" in render_card(peeking, [peeking])
    assert "chosen on the test set" in str(header(render_card(peeking, [peeking]))["model-index"])


def test_runs_of_other_recipes_data_and_weights_are_left_out(run: Path) -> None:
    def beside(name: str, record: RunRecord) -> None:
        (run.parent / name).mkdir()
        (run.parent / name / "record.json").write_text(json.dumps(record.to_dict()))

    record = read_record(run)
    beside("7", replace(record, seed=7))
    beside("8", replace(record, seed=8, config={**record.config, "budget": 1}))
    beside("9", replace(record, seed=9, data={**record.data, "digest": "other"}))
    init = GivenModel(path="/home/me/runs/digits/0/", sha256="a" * 64, params=9, taken="all weights")
    beside("10", replace(record, seed=10, init=init))
    (run.parent / "notes").mkdir()
    (run.parent / "notes" / "record.json").write_text("of another program")
    assert "seeds 0, 1, 7 the" in write_card(run).read_text()
    shutil.copy(run / "model.safetensors", run.parent / "10")
    card = write_card(run.parent / "10").read_text()
    assert "n = 1" in card and "digits/0: all weights" in card and "/home/me" not in card
    for teacher, named in (("/home/me/runs/a/0", "a/0"), (["/home/me/runs/a/0", "/home/me/b/1"], "b/1")):
        distill = {"teacher": teacher, "weight": 0.5, "temperature": 4.0}
        shutil.copytree(run, run.parent / "taught", dirs_exist_ok=True)
        taught = replace(record, seed=11, config={**record.config, "distill": distill})
        (run.parent / "taught" / "record.json").write_text(json.dumps(taught.to_dict()))
        (run.parent / "taught" / "README.md").unlink(missing_ok=True)
        card = write_card(run.parent / "taught").read_text()
        assert named in card and "/home/me" not in card


def test_class_names_cannot_break_a_table(run: Path) -> None:
    record = read_record(run)
    scores = (replace(record.test.per_class[0], name="a|b <c>\n`d`"), *record.test.per_class[1:])
    text = render_card(replace(record, test=replace(record.test, per_class=scores)), [record])
    assert "| a\\|b &lt;c> \\`d\\` |" in text


def test_the_folder_loads_from_card_and_model_alone(run: Path, tmp_path: Path) -> None:
    write_card(run)
    published = tmp_path / "published"
    published.mkdir()
    for name in ("README.md", "model.safetensors"):
        shutil.copy(run / name, published)
    images = torch.zeros(2, 1, 8, 8)
    assert torch.equal(resfit.load(published)(images), resfit.load(run)(images))
    Image.new("L", (30, 20), 200).save(tmp_path / "a.png")
    assert len(resfit.predict(published, tmp_path / "a.png").images[0].classes) == 10


def test_a_licence_and_the_models_digest_stand_in_the_card(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(run), "--license", "mit\nlicense: other"]) == 2
    assert "is not a licence identifier (--license)" in capsys.readouterr().err
    assert main(["card", str(run), "--license", "cc-by-4.0"]) == 0
    assert "choose a licence" not in capsys.readouterr().out
    card = (run / "README.md").read_text()
    assert header(card)["license"] == "cc-by-4.0" and "Choose a licence" not in card
    assert hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() in card


def test_a_readme_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(run)]) == 0
    assert "licence" in capsys.readouterr().out
    before = (run / "README.md").read_bytes()
    assert main(["card", str(run)]) == 2
    assert "a README.md already exists" in capsys.readouterr().err
    assert (run / "README.md").read_bytes() == before


def test_a_card_needs_a_record_and_a_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no finished run"):
        write_card(tmp_path)
    (run / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no model\.safetensors"):
        write_card(run)


def test_the_card_says_where_the_weights_came_from_and_what_corruptions_did(run: Path) -> None:
    record = read_record(run)
    plain = render_card(record, [record])
    assert "trained from scratch with resfit" in plain
    assert "scales, crops and corruptions were not measured.\n- It was" in plain
    given = GivenModel(path="old/run", sha256="0" * 64, params=1, recipe="old", data=None)
    made = Robustness(set="resfit-1", seed=0, images=10, clean=0.9, mean=0.7, kinds=())
    card = render_card(replace(record, init=given, robustness=made), [record])
    assert "fine-tuned from another network's weights with resfit" in card
    assert f"(resfit-1) its mean accuracy is {percent(0.7)}; other cameras, scales and crops were not" in card
