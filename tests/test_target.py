"""TARGET is a recipe's name, a recipe or spec file, a run folder, or a model; anything else is refused in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from resfit.errors import BadInput
from resfit.recipe import DEFAULT_BUDGET, get_recipe
from resfit.study.plan import get_study
from resfit.target import find_target

RECIPE = get_recipe("digits")  # its budget is its own: 500,000


def header(metadata: object) -> bytes:
    """A safetensors file without tensors."""
    text = json.dumps({"__metadata__": metadata} if metadata is not None else {}).encode()
    return struct.pack("<Q", len(text)) + text


def model(folder: Path, content: bytes) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return str(path)


def complaint(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        find_target(text)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_name_is_a_named_recipe():
    target = find_target("digits")
    assert (target.name, target.spec, target.budget) == ("digits", RECIPE.spec, 500_000)


def test_nothing_in_the_folder_hides_a_name(tmp_path, monkeypatch):
    """Where runs lie, folders are called as recipes are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "seed001").write_text("mine")
    assert find_target("digits").spec == RECIPE.spec
    assert get_recipe("digits") == RECIPE
    assert get_study("seed001").recipe == "seed001d"


def test_a_recipe_file_brings_its_budget(tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE.replace({"name": "mine"}).to_yaml())
    target = find_target(str(tmp_path / "mine.yaml"))
    assert (target.name, target.spec, target.budget) == ("mine", RECIPE.spec, 500_000)


def test_a_recipe_without_a_network_is_said_to_be_one(tmp_path):
    (tmp_path / "r.yaml").write_text("name: r\ntrain: {epochs: 3}\n")
    with pytest.raises(BadInput, match=r"missing field \(spec\): give it a value"):
        find_target(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize("name", ["net.yaml", "net.yml", "net"])
def test_a_spec_file_is_held_against_the_usual_budget(tmp_path, name):
    (tmp_path / name).write_text(RECIPE.spec.to_yaml())
    target = find_target(str(tmp_path / name))
    assert (target.name, target.spec, target.budget) == ("net", RECIPE.spec, DEFAULT_BUDGET)


def test_a_run_folder_is_its_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.to_yaml())
    target = find_target(str(tmp_path))
    assert (target.name, target.spec, target.budget) == ("digits", RECIPE.spec, 500_000)


def test_a_model_brings_the_spec_in_its_header(tmp_path):
    path = model(tmp_path, header({"resfit.spec": json.dumps(RECIPE.spec.to_dict())}))
    assert find_target(path).spec == RECIPE.spec


def test_a_saved_model_brings_its_spec(tmp_path):
    from resfit.modelfile import save_model
    from resfit.modelheader import ModelInfo
    from resfit.net import build

    info = ModelInfo(classes=("a",), mean=(0.0,), std=(1.0,))
    save_model(tmp_path / "model.safetensors", build(RECIPE.spec), RECIPE.spec, info)
    assert find_target(str(tmp_path / "model.safetensors")).spec == RECIPE.spec


def test_an_unknown_name_is_answered_with_the_nearest():
    assert complaint("digit") == "neither a named recipe nor a file (digit): did you mean digits?"


@pytest.mark.parametrize("text", ["", "\0", "a\nb", "x" * 300])
def test_text_that_can_be_no_name_is_refused_as_well(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complaint(text)


def test_a_folder_without_a_run_and_a_file_that_is_not_there_are_named(tmp_path):
    assert "recipe.yaml" in complaint(str(tmp_path))
    assert "absent.yaml" in complaint(str(tmp_path / "absent.yaml"))
    assert complaint(str(tmp_path / "absent.safetensors")).startswith("no such file")


@pytest.mark.parametrize("text", ["- a list", "stages: [", "just text", "stages: []", "spec: {}"])
def test_a_yaml_file_that_is_neither_spec_nor_recipe_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    complaint(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}" * 10,
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        struct.pack("<Q", 2) + b"[]",
        header(None),
        header({}),
        header({"resfit.spec": 5}),
        header("text"),
        header({"resfit.spec": "{"}),
        header({"resfit.spec": '{"stages": []}'}),
        struct.pack("<Q", 22) + b'{"__metadata__": null}',
    ],
)
def test_a_model_file_that_is_not_whole_or_not_ours_is_refused(tmp_path, content):
    assert "model.safetensors" in complaint(model(tmp_path, content))
