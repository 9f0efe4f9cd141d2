"""Runs that build on trained networks: what is taken, what is refused, and what the record says of it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import resfit
from helpers.runs import Interrupt, without_times
from helpers.tiny_recipe import TINY
from helpers.training import trainer, weights
from resfit.data import load_dataset
from resfit.errors import BadInput
from resfit.modelfile import load
from resfit.net import build
from resfit.observer import Observer
from resfit.pretrained import begin_from, load_teacher
from resfit.recipe import Recipe
from resfit.run import train

NO_TRAINING = {"optim.lr": 1e-30, "optim.weight_decay": 0.0, "optim.momentum": 0.0, "train.epochs": 1}


class Listener(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a trained network."""
    out = tmp_path_factory.mktemp("source")
    train(Recipe.from_dict(TINY).replace({"name": "source", "train.epochs": 2}), seed=9, out=out)
    return out / "source" / "9"


def alone(source: Path, tmp_path: Path) -> Path:
    """The model without its record."""
    return shutil.copy(source / "model.safetensors", tmp_path / "lone.safetensors")


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(folder).named_parameters())


def test_training_begins_with_the_given_weights(tiny: Recipe, source: Path, tmp_path: Path) -> None:
    listener = Listener()
    record = train(tiny.replace(NO_TRAINING), out=tmp_path, init=source, observer=listener)
    begun, given = parameters(tmp_path / "tiny" / "0"), parameters(source)
    assert all(torch.equal(begun[name], value) for name, value in given.items())
    assert record.init is not None
    assert (record.init.sha256, record.init.recipe) == (sha256(source), "source")
    assert (record.init.path, record.init.note) == (str(source), "")
    assert f"starting from {source}: all weights" in listener.lines


def test_the_head_begins_anew_for_other_classes(tiny: Recipe, source: Path, two_classes: Path, tmp_path: Path) -> None:
    listener = Listener()
    recipe = tiny.replace({**NO_TRAINING, "data.name": "folder", "data.val": 0.1, "spec.dropout.head": 0.5})
    record = train(recipe, data_dir=two_classes, out=tmp_path / "runs", init=source, observer=listener)
    begun, given = parameters(tmp_path / "runs" / "tiny" / "0"), parameters(source)
    assert begun["head.weight"].shape == (2, 16)
    assert all(torch.equal(begun[name], value) for name, value in given.items() if not name.startswith("head."))
    assert record.init is not None
    assert record.init.taken == "all weights except the head's, which is initialized anew for 2 classes"
    assert load(tmp_path / "runs" / "tiny" / "0").info.classes == ("dark", "light")


def test_as_many_classes_of_other_names_are_other_classes(tiny: Recipe, source: Path) -> None:
    data = load_dataset(tiny.data, size=8, channels=1)
    renamed = type(data)(**{**vars(data), "classes": tuple("abcdefghij")})
    net = build(tiny.spec)
    fresh = net.head.weight.clone()
    begin_from(source, net, renamed, tiny.data)
    assert torch.equal(net.head.weight, fresh)
    begin_from(source, net, data, tiny.data)
    assert torch.equal(net.head.weight, load(source).head.weight)


@pytest.mark.parametrize("form", [{"spec.head.bias": False}, {"spec.head.scale": 0.5}], ids=str)
def test_a_head_of_another_form_begins_anew(form: dict[str, Any], tiny: Recipe, source: Path) -> None:
    net = build(tiny.replace(form).spec)
    fresh = net.head.weight.clone()
    given = begin_from(source, net, load_dataset(tiny.data, size=8, channels=1), tiny.data)
    assert torch.equal(net.head.weight, fresh)
    assert "except the head's" in given.taken


def test_another_spec_is_refused_by_name_before_anything_is_written(tiny: Recipe, source: Path, tmp_path: Path) -> None:
    other = tiny.replace({"spec.activation": "silu", "spec.stem.channels": 4})
    with pytest.raises(
        BadInput, match=r"the network differs in stem and activation \(.*\): give one with the recipe's own"
    ):
        train(other, out=tmp_path, init=source)
    with pytest.raises(BadInput, match=r"the network differs in dropout\.shakedrop"):
        train(tiny.replace({"spec.dropout.shakedrop": 0.5}), out=tmp_path, init=source)
    with pytest.raises(BadInput, match="no model"):
        train(tiny, out=tmp_path, init=tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_whitening_stem_keeps_the_filters_that_it_was_given(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace({"spec.stem": {"kind": "whiten", "kernel": 2, "channels": 8}, "train.epochs": 1})
    train(recipe.replace({"name": "first", "data.split_seed": 5}), out=tmp_path)
    first = tmp_path / "first" / "0"
    train(recipe.replace(NO_TRAINING), out=tmp_path, init=first)
    filters = load(first).get_buffer("stem.conv.weight")
    assert torch.equal(load(tmp_path / "tiny" / "0").get_buffer("stem.conv.weight"), filters)


def test_an_interrupted_fine_tuning_resumes_without_its_source(
    tiny: Recipe, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resfit.runner._SAVES_SHARE", 1e9)
    tiny = tiny.replace({"train.checkpoint_minutes": 1e-9})
    given = Path(shutil.copytree(source, tmp_path / "given"))
    whole = train(tiny, out=tmp_path / "whole", init=given)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, out=tmp_path / "cut", init=given, observer=Interrupt(1))
    with pytest.raises(BadInput, match="a resumed run keeps its own weights"):
        train(tiny, out=tmp_path / "cut", init=given, resume=True)
    shutil.rmtree(given)
    resumed = train(tiny, out=tmp_path / "cut", resume=True)
    assert without_times(resumed) == without_times(whole)
    assert resumed.init is not None
    from_scratch = train(tiny, out=tmp_path / "scratch")
    assert from_scratch.init is None
    assert from_scratch.test != whole.test


def learns_from(*teachers: Path, **overrides: Any) -> dict[str, Any]:
    return {"distill.teacher": [str(teacher) for teacher in teachers], "train.epochs": 2, **overrides}


def test_a_student_learns_from_its_teacher_and_the_record_names_it(tiny: Recipe, source: Path, tmp_path: Path) -> None:
    listener = Listener()
    record = train(tiny.replace(learns_from(source)), out=tmp_path / "a", observer=listener)
    (teacher,) = record.teachers
    assert (teacher.path, teacher.sha256, teacher.recipe) == (str(source), sha256(source), "source")
    assert (teacher.data, teacher.note) == (record.data["digest"], "")
    assert f"learning from {source}: its answers to the training images" in listener.lines
    again = train(tiny.replace(learns_from(source)), out=tmp_path / "b")
    assert without_times(again) == without_times(record)
    plain = train(tiny.replace({"train.epochs": 2}), out=tmp_path / "c")
    assert plain.test != record.test
    assert plain.teachers == ()


def test_a_student_of_a_whole_weight_follows_the_teacher_and_not_the_labels(tiny: Recipe, source: Path) -> None:
    data = load_dataset(tiny.data, size=8, channels=1)
    behind, _ = load_teacher(source, build(tiny.spec), data, tiny.data)
    whole = tiny.replace({"distill": {"teacher": "x", "weight": 1.0}, "train.epochs": 1})
    ends = []
    for shift in (0, 1):
        run = trainer(whole, teachers=[behind])
        run.labels = (run.labels + shift) % 10
        run.train_epoch()
        ends.append(weights(run.net))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], value) for name, value in weights(load(source)).items())


def test_an_interrupted_student_resumes_with_the_same_teacher_alone(
    tiny: Recipe, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resfit.runner._SAVES_SHARE", 1e9)
    tiny = tiny.replace({"train.checkpoint_minutes": 1e-9})
    given = Path(shutil.copytree(source, tmp_path / "given"))
    ingredients = {"average.name": "swa", "average.start": 0.5, "optim.sam.rho": 0.05, "augment.ricap": 0.3}
    recipe = tiny.replace({**learns_from(given), **ingredients, "train.epochs": 3, "evaluate.selection": "best-val"})
    whole = train(recipe, out=tmp_path / "whole")
    for cut in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out=tmp_path / f"cut{cut}", observer=Interrupt(cut))
        resumed = train(recipe, out=tmp_path / f"cut{cut}", resume=True)
        assert without_times(resumed) == without_times(whole)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "other", observer=Interrupt(1))
    train(tiny.replace({"name": "another", "train.epochs": 1}), out=tmp_path)
    shutil.copy(tmp_path / "another" / "0" / "model.safetensors", given)
    with pytest.raises(BadInput, match="the teacher has changed since the run began"):
        train(recipe, out=tmp_path / "other", resume=True)


def test_a_teacher_that_saw_validation_images_is_refused_unless_nothing_is_validated(
    tiny: Recipe, source: Path, tmp_path: Path
) -> None:
    for split in ({"data.split_seed": 1}, {"data.val": 100}):
        with pytest.raises(BadInput, match=r"on images that this run validates on .* or give data.val 0"):
            train(tiny.replace(learns_from(source, **split)), out=tmp_path)
    assert not list(tmp_path.iterdir())
    record = train(tiny.replace(learns_from(source, **{"data.val": 0})), out=tmp_path)
    assert record.teachers[0].note == ""


def test_weights_that_saw_validation_images_are_noted(tiny: Recipe, source: Path, tmp_path: Path) -> None:
    record = train(tiny.replace({**NO_TRAINING, "data.split_seed": 1}), out=tmp_path, init=source)
    assert record.init is not None
    assert "trained on images that this run validates on" in record.init.note
    record = train(tiny.replace({**NO_TRAINING, "data.fraction": 0.5}), out=tmp_path / "half", init=source)
    assert record.init is not None
    assert record.init.note == ""


def test_a_student_of_fewer_images_has_its_teachers_validation_images(
    tiny: Recipe, source: Path, tmp_path: Path
) -> None:
    fewer = learns_from(source, **{"data.fraction": 0.5})
    assert train(tiny.replace(fewer), out=tmp_path).teachers[0].note == ""
    with pytest.raises(BadInput, match="on images that this run validates on"):
        train(tiny.replace({**fewer, "data.split_seed": 1}), out=tmp_path / "other")


def test_a_model_without_a_record_is_noted(tiny: Recipe, source: Path, tmp_path: Path) -> None:
    lone, listener = alone(source, tmp_path), Listener()
    record = train(tiny.replace({**learns_from(lone), **NO_TRAINING}), out=tmp_path, init=lone, observer=listener)
    assert record.init is not None
    for model in (record.init, *record.teachers):
        assert "no record of its training images" in model.note
        assert model.recipe is None
    assert sum("no record of" in line for line in listener.lines) == 2


def test_a_teacher_that_peeked_is_noted(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny.replace({"name": "peeked", "train.epochs": 1, "evaluate.selection": "best-test"}), out=tmp_path)
    record = train(tiny.replace(learns_from(tmp_path / "peeked" / "0")), out=tmp_path)
    assert "chosen on the test set" in record.teachers[0].note


def test_teachers_of_other_classes_images_or_data_are_refused(
    tiny: Recipe, source: Path, two_classes: Path, tmp_path: Path
) -> None:
    folder = tiny.replace({"data.name": "folder", "data.val": 0.1, "train.epochs": 1})
    with pytest.raises(BadInput, match="the teacher has other classes than folder"):
        train(folder.replace(learns_from(source)), data_dir=two_classes, out=tmp_path / "runs")
    with pytest.raises(BadInput, match="the teacher takes images of another shape"):
        train(tiny.replace(learns_from(source, **{"spec.input.size": 12})), out=tmp_path / "runs")
    with pytest.raises(BadInput, match="no model"):
        train(tiny.replace(learns_from(tmp_path / "nowhere")), out=tmp_path / "runs")
    train(folder, data_dir=two_classes, out=tmp_path / "runs")
    student = folder.replace({"name": "student", **learns_from(tmp_path / "runs" / "tiny" / "0")})
    assert train(student, data_dir=two_classes, out=tmp_path / "runs").teachers[0].note == ""
    (two_classes / "dark" / "0.png").unlink()
    with pytest.raises(BadInput, match="the teacher was trained on other images than this run's"):
        train(student, data_dir=two_classes, out=tmp_path / "again")


def test_a_teacher_for_one_size_alone_is_refused_where_images_grow(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny.replace({"name": "windowed", "spec.pool.size": 2, **NO_TRAINING}), out=tmp_path)
    teacher = learns_from(tmp_path / "windowed" / "0")
    with pytest.raises(BadInput, match=r"^the teacher cannot take images of 6x6 \(train.resize, "):
        train(tiny.replace({**teacher, "train.resize": [[0.0, 8], [0.5, 6]]}), out=tmp_path)
    assert train(tiny.replace({**teacher, "train.resize": [[0.0, 8]]}), out=tmp_path).teachers


def test_runs_from_other_weights_are_not_one_group(tiny: Recipe, source: Path, tmp_path: Path) -> None:
    from resfit.record import group_runs

    begun = train(tiny.replace(NO_TRAINING), out=tmp_path / "begun", init=source)
    scratch = train(tiny.replace(NO_TRAINING), out=tmp_path / "scratch")
    assert [len(group) for group in group_runs([begun, scratch, begun]).values()] == [2, 1]


def test_on_the_command_line(tiny: Recipe, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from resfit.cli import main

    (tmp_path / "mine.yaml").write_text(tiny.replace(NO_TRAINING).to_yaml())
    words = ["train", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "runs"), "--init", str(source)]
    assert main(words) == 0
    assert "starting from" in capsys.readouterr().err
    assert resfit.read_record(tmp_path / "runs" / "tiny" / "0").init is not None
    assert main(["train", "--resume", str(source), "--init", str(source)]) == 2
    assert "give only the run folder" in capsys.readouterr().err
