"""A run folder: complete, honest, resumable, never overwritten."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import resfit
from helpers.runs import Interrupt, without_times
from resfit import kernels, runner
from resfit.checkpoint import STATE, load_state, save_state
from resfit.data import Dataset, load_dataset
from resfit.data.normalize import normalizer
from resfit.errors import BadInput, RunFailed
from resfit.net import Network
from resfit.recipe import DataConfig, Recipe
from resfit.record import read_record, write_summary
from resfit.run import train, validation_curve
from resfit.train import Trainer


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = (resfit.load(folder).state_dict() for folder in (a, b))
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_a_run_leaves_its_folder_complete(tiny: Recipe, tmp_path: Path) -> None:
    record = train(tiny, seed=3, out=tmp_path)
    folder = tmp_path / "tiny" / "3"
    names = {"recipe.yaml", "record.json", "metrics.jsonl", "model.safetensors", "report.html"}
    names |= {"state.pt", "state.previous.pt"}
    assert {path.name for path in folder.iterdir()} == names
    assert read_record(folder) == record
    assert Recipe.from_yaml(folder / "recipe.yaml") == tiny
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["val_accuracy"] for line in lines] == [point.val_accuracy for point in record.curve]
    HTMLParser().feed((folder / "report.html").read_text())


def test_the_record_holds_what_the_design_promises(tiny: Recipe, tmp_path: Path) -> None:
    record = train(tiny, seed=0, out=tmp_path)
    plain = json.loads((tmp_path / "tiny" / "0" / "record.json").read_text())
    for key in ("resfit", "recipe", "spec", "params", "macs", "seed", "epochs", "device", "precision", "env", "data"):
        assert plain[key] not in (None, ""), key
    assert {"python", "torch", "cpu", "cpu_features", "threads", "commit"} <= plain["env"].keys()
    assert plain["data"]["n_train"] + plain["data"]["n_val"] + plain["data"]["n_test"] == 1797
    assert plain["data"]["n_val"] == 200
    assert plain["protocol"]["selection"] == "last"
    assert plain["protocol"]["tta"] is True
    assert plain["protocol"]["test_scored"] == 1
    assert plain["protocol"]["peeking"] is False
    assert plain["temperature"] == resfit.load(tmp_path / "tiny" / "0").info.temperature > 0
    assert plain["test"]["calibrated"]["temperature"] == plain["temperature"]
    assert plain["test"]["calibrated"]["loss"] != plain["test"]["loss"]
    assert plain["params"] == resfit.cost(tiny.spec).params
    assert sum(layer["params"] for layer in plain["layers"]) == plain["params"]
    assert plain["seconds_to_result"] > sum(point.seconds for point in record.curve)
    images, seconds = (sum(getattr(point, name) for point in record.curve) for name in ("images", "seconds"))
    assert plain["images_per_second"] == pytest.approx(images / seconds)
    assert sum(map(sum, plain["test"]["confusion"])) == plain["data"]["n_test"]
    assert len(plain["samples"]) > 8
    assert plain["augmented"].startswith("iVBOR")


def test_the_digest_of_a_data_set_never_changes() -> None:
    """Resuming, grouping and teachers rest on it, and so do the records of earlier versions."""
    digits = load_dataset(DataConfig(name="digits", val=0.1), size=8, channels=1)
    assert digits.digest == "37862c6680af1346a37ae9a191c4627ea1ec9194b09ef43ad632335721b0cebe"


def test_a_whitening_stem_gets_its_filters_from_the_training_images(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace({"spec.stem": {"kind": "whiten", "kernel": 2, "channels": 8}, "train.epochs": 1})
    train(recipe, out=tmp_path)
    data, net = load_dataset(recipe.data, size=8, channels=1), resfit.build(recipe.spec)
    runner.whiten_stem(net, data.train.images[:5000], normalizer(data.mean, data.std, torch.device("cpu")))
    filters = resfit.load(tmp_path / "tiny" / "0").state_dict()["stem.conv.weight"]
    torch.testing.assert_close(filters, net.state_dict()["stem.conv.weight"])


def test_cutout_is_filled_with_the_mean_of_the_training_images(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(runner, "Trainer", lambda **options: seen.update(options) or Trainer(**options))
    record = train(tiny.replace({"train.epochs": 1}), out=tmp_path)
    assert seen["fill"].tolist() == [round(255 * mean) for mean in record.data["mean"]]


def test_the_time_before_an_interruption_counts(tiny: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "0"
    with pytest.raises(KeyboardInterrupt):
        train(tiny.replace({"train.checkpoint_minutes": 1e-9}), out=tmp_path, observer=Interrupt(1))
    save_state(folder / STATE, {**load_state(folder / STATE), "seconds": 1000.0})
    record = train(tiny.replace({"train.checkpoint_minutes": 1e-9}), out=tmp_path, resume=True)
    assert 1000 < record.seconds_to_result < 1500


def test_same_seed_same_record(tiny: Recipe, tmp_path: Path) -> None:
    first, second = train(tiny, out=tmp_path / "a"), train(tiny, out=tmp_path / "b")
    other = train(tiny, seed=1, out=tmp_path / "c")
    assert without_times(first) == without_times(second)
    assert without_times(first) != without_times(other)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_an_interrupted_run_resumes_to_the_same_record(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.setattr(runner, "_SAVES_SHARE", 1e9)
    often = {"train.checkpoint_minutes": 1e-9, "evaluate.selection": "best-val"}
    recipe = tiny.replace({**often, "spec.dropout.head": 0.1, "average.name": "ema"})
    whole = train(recipe, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "cut", observer=Interrupt(cut))
    resumed = train(recipe, out=tmp_path / "cut", resume=True)
    assert without_times(resumed) == without_times(whole)
    metrics = [(tmp_path / name / "tiny" / "0" / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert [len(lines) for lines in metrics] == [3, 3]
    assert_same_weights(tmp_path / "whole" / "tiny" / "0", tmp_path / "cut" / "tiny" / "0")


def test_a_finished_run_is_never_overwritten(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, out=tmp_path)
    folder = tmp_path / "tiny" / "0"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for resume, line in (
        (False, "a finished run already exists"),
        (True, "the run is finished .* nothing to resume"),
    ):
        with pytest.raises(BadInput, match=line):
            train(tiny, out=tmp_path, resume=resume)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_with_another_recipe(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny, out=tmp_path, observer=Interrupt(1))
    state = (tmp_path / "tiny" / "0" / "state.pt").read_bytes()
    with pytest.raises(BadInput, match=r"an unfinished run already exists .*: continue with --resume"):
        train(tiny, out=tmp_path)
    with pytest.raises(BadInput, match=r"the recipe has changed since the run began \(optim.lr: 0.1 -> 0.2\)"):
        train(tiny.replace({"optim.lr": 0.2}), out=tmp_path, resume=True)
    assert (tmp_path / "tiny" / "0" / "state.pt").read_bytes() == state


def test_divergence_keeps_the_last_finite_weights(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="not finite"):
        train(tiny.replace({"optim.lr": 1e30, "optim.momentum": 0.0}), out=tmp_path)
    state = load_state(tmp_path / "tiny" / "0" / "state.pt")
    assert all(torch.isfinite(value).all() for value in state["trainer"]["net"].values())
    assert not (tmp_path / "tiny" / "0" / "record.json").exists()


def test_over_budget_is_refused_before_anything_is_built(tiny: Recipe, tmp_path: Path) -> None:
    price = resfit.cost(tiny.spec).params
    with pytest.raises(BadInput, match=r"1 over the budget .* the nearest that fits .* spec\.stages\.1\.channels \d"):
        train(tiny.replace({"budget": price - 1}), out=tmp_path)
    assert not list(tmp_path.iterdir())
    assert train(tiny.replace({"budget": price, "train.epochs": 1}), out=tmp_path).params == price


def test_best_val_scores_the_best_epochs_weights(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(
        {"evaluate.selection": "best-val", "train.epochs": 5, "schedule.name": "constant", "optim.lr": 0.5}
    )
    record = train(recipe, out=tmp_path)
    values = [point.val_accuracy for point in record.curve]
    assert record.val is not None
    assert record.val.accuracy == max(values)
    assert record.protocol["best_epoch"] == 1 + values.index(max(values))
    assert record.protocol["test_scored"] == 1


def test_best_test_is_marked_as_peeking(tiny: Recipe, tmp_path: Path) -> None:
    record = train(tiny.replace({"evaluate.selection": "best-test"}), out=tmp_path)
    assert record.protocol["peeking"] is True
    assert record.protocol["test_scored"] == 4
    assert record.test.accuracy == max(point.test_accuracy for point in record.curve)
    assert "peek" in (tmp_path / "tiny" / "0" / "report.html").read_text().lower()


def test_patience_stops_early(tiny: Recipe, tmp_path: Path) -> None:
    still = {"optim.lr": 1e-9, "optim.weight_decay": 0.0, "spec.norm.momentum": 1e-6}
    record = train(tiny.replace({**still, "train.epochs": 30, "train.patience": 2}), out=tmp_path)
    assert record.epochs == len(record.curve) == 3


@pytest.mark.parametrize(("field", "value"), [("evaluate.selection", "best-val"), ("train.patience", 1)])
def test_a_folders_own_validation_images_decide_whatever_data_val_is(
    tiny: Recipe, two_classes: Path, tmp_path: Path, field: str, value: str | int
) -> None:
    still = {"optim.lr": 1e-9, "optim.weight_decay": 0.0, "spec.norm.momentum": 1e-6, "train.epochs": 9}
    recipe = tiny.replace({**still, "data.name": "folder", "data.val": 0, "spec.num_classes": 2, field: value})
    with pytest.raises(BadInput, match=rf"^no validation images \({field}\): give data.val, or a folder val/$"):
        train(recipe, data_dir=two_classes, out=tmp_path)
    assert not (tmp_path / "tiny").exists()
    for part in ("train", "test", "val"):
        shutil.copytree(two_classes, tmp_path / "parted" / part)
    record = train(recipe, data_dir=tmp_path / "parted", out=tmp_path)
    assert record.data["n_val"] == 40
    assert (record.protocol["best_epoch"] is None, record.epochs == 9) == (value == 1, value == "best-val")


@pytest.mark.parametrize("resize", [[], [[0.0, 4], [0.5, 8]]], ids=["whole images", "smaller ones at first"])
def test_single_images_are_trained_on_or_refused_ahead(tiny: Recipe, resize: list[list[float]]) -> None:
    """A norm needs more than one value of a channel."""
    stages = [{"blocks": 1, "channels": 8}] * (3 if resize else 4)
    single = tiny.replace({"train.batch_size": 1, "train.epochs": 1, "data.fraction": 0.02, "spec.stages": stages[:-1]})
    assert validation_curve(single)[0].images == 25
    with pytest.raises(BadInput, match=r"train.batch_size is 1 \(train.batch_size\): give 2 or more"):
        single.replace({"spec.stages": stages, "train.resize": resize})


def test_patience_waits_for_another_validation(tiny: Recipe, tmp_path: Path) -> None:
    still = {"optim.lr": 1e-9, "optim.weight_decay": 0.0, "spec.norm.momentum": 1e-6}
    record = train(tiny.replace({**still, "train.epochs": 9, "train.patience": 1, "evaluate.every": 3}), out=tmp_path)
    assert record.epochs == 6


def test_validating_less_often_changes_no_weight(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, out=tmp_path / "often")
    seldom = train(tiny.replace({"evaluate.every": 3}), out=tmp_path / "seldom")
    assert [point.val_accuracy is None for point in seldom.curve] == [True, True, False]
    assert_same_weights(tmp_path / "often" / "tiny" / "0", tmp_path / "seldom" / "tiny" / "0")


@pytest.mark.parametrize("seed", [-1, 2**64, True, "3", 1.0, None])
def test_what_is_no_seed_is_refused(seed: object, tiny: Recipe, tmp_path: Path) -> None:
    for work in (lambda: train(tiny, seed=seed, out=tmp_path), lambda: validation_curve(tiny, seed=seed)):  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="is not a seed"):
            work()
    assert not list(tmp_path.iterdir())


def test_what_a_program_has_at_hand_is_taken(tiny: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(tiny.replace({"train.epochs": 1}).to_yaml())
    assert train(file, seed=np.int64(5), out=tmp_path, device=torch.device("cpu")).seed == 5  # type: ignore[arg-type]


def test_the_callers_random_numbers_are_left_alone(tiny: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    train(tiny.replace({"train.epochs": 1}), seed=12, out=tmp_path)
    assert torch.rand(1) == wanted


def test_runs_in_threads_are_those_of_one_thread(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace({"train.epochs": 2, "spec.dropout.head": 0.3})
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: train(recipe, seed=seed, out=tmp_path / "threads"), (0, 1)))
    for seed in (0, 1):
        train(recipe, seed=seed, out=tmp_path / "alone")
        assert_same_weights(tmp_path / "threads" / "tiny" / str(seed), tmp_path / "alone" / "tiny" / str(seed))
    assert not kernels.in_use(torch.float32)


def test_evaluate_repeats_the_records_score(tiny: Recipe, tmp_path: Path) -> None:
    record = train(tiny, out=tmp_path)
    folder = tmp_path / "tiny" / "0"
    assert resfit.evaluate(folder, tta="flip+shift") == record.test
    with pytest.raises(BadInput, match="'flop' is not a test-time augmentation"):
        resfit.evaluate(folder, tta="flop")
    moved = tmp_path / "alone.safetensors"
    moved.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(BadInput, match="with --data"):
        resfit.evaluate(moved)
    assert resfit.evaluate(moved, data="digits").accuracy == record.test.accuracy


def test_a_model_file_is_enough_in_a_new_process(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny, out=tmp_path)
    code = (
        "import sys, torch, resfit\n"
        "net = resfit.load(sys.argv[1])\n"
        "params = sum(p.numel() for p in net.parameters())\n"
        "print(net.info.classes[3], params, tuple(net(torch.zeros(2, 1, 8, 8)).shape))"
    )
    model = tmp_path / "tiny" / "0" / "model.safetensors"
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", str(resfit.cost(tiny.spec).params), "(2,", "10)"]


def test_a_folder_of_images_trains_with_nothing_but_its_place(tmp_path: Path) -> None:
    for label, level in (("dark", 40), ("light", 200), ("middle", 120)):
        for n in range(20):
            path = tmp_path / "images" / label / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 14), (level + n, level, level - n)).save(path)
    recipe = resfit.get_recipe("folder", {"train.epochs": 2, "spec.stages": [{"blocks": 1, "channels": 8}]})
    record = train(recipe, data_dir=tmp_path / "images", out=tmp_path / "runs")
    assert record.data["classes"] == ["dark", "light", "middle"]
    assert record.spec["num_classes"] == 3
    assert record.data["n_train"] + record.data["n_val"] + record.data["n_test"] == 60
    run = tmp_path / "runs" / "folder" / "0"
    assert resfit.load(run).info.classes == ("dark", "light", "middle")
    assert resfit.evaluate(run, data_dir=tmp_path / "images").accuracy == record.test.accuracy
    Image.new("RGB", (20, 14), (90, 9, 90)).save(tmp_path / "images" / "dark" / "new.png")
    with pytest.raises(BadInput, match="put images to test on into test/"):
        resfit.evaluate(run, data_dir=tmp_path / "images")


def test_a_summary_of_several_runs(tiny: Recipe, tmp_path: Path) -> None:
    records = [train(tiny.replace({"train.epochs": 1}), seed=seed, out=tmp_path) for seed in (0, 1)]
    write_summary(records, tmp_path / "tiny")
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    values = [record.test.accuracy for record in records]
    assert summary["accuracy"]["n"] == 2
    assert summary["accuracy"]["values"] == values
    assert summary["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert summary["seeds"] == [0, 1]


@pytest.mark.parametrize("work", [train, validation_curve])
def test_a_run_lets_go_of_its_network_and_images_when_it_ends(work, tiny: Recipe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    gc.collect()
    before = alive()
    gc.disable()  # only what nothing refers to goes away now
    try:
        work(tiny)
        assert alive() == before
    finally:
        gc.enable()


def alive() -> int:
    """The networks, optimizers and data sets that this process holds."""
    return sum(issubclass(type(thing), (Network, Dataset, torch.optim.Optimizer)) for thing in gc.get_objects())


def test_training_leaves_the_processs_arithmetic_as_it_was(tiny: Recipe, tmp_path: Path) -> None:
    smallest = torch.tensor(1e-310, dtype=torch.float64)
    train(tiny.replace({"train.epochs": 1}), out=tmp_path)
    assert smallest * 1.0 > 0


def test_memory_that_runs_out_while_scoring_is_one_line_that_says_how_to_go_on(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, pytest.raises(RunFailed, match=r"--evaluate.batch_size 125 --override$"):
        patch.setattr(runner, "predict_logits", too_much)
        train(tiny, out=tmp_path)
    smaller = tiny.replace({"evaluate.batch_size": 125})
    assert train(smaller, out=tmp_path, resume=True, override=True).epochs == 3
