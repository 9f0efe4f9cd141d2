"""The command line: what people type, what they read, and one line for each mistake."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from helpers.golden import REPORTED
from helpers.tiny_recipe import TINY
from resfit.cli import main
from resfit.data import load_dataset
from resfit.machine import cores
from resfit.modelfile import load
from resfit.record import read_record, runs_alike


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def fails(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    """The one error line of a command that has to end with `status`."""
    assert main(list(words)) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "params"), REPORTED.items())
def test_show_gives_the_reports_counts(capsys: pytest.CaptureFixture[str], name: str, params: int) -> None:
    facts = json.loads(printed(capsys, "show", name, "--json"))
    assert (facts["params"], facts["budget"], facts["fits"]) == (params, 5_000_000, True)
    assert facts["macs"] > 0


def test_show_prices_any_spec_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    spec = tmp_path / "wide.yaml"
    spec.write_text("stages: [{blocks: 2, channels: 64}, {blocks: 2, channels: 128}, {blocks: 2, channels: 512}]\n")
    facts = json.loads(printed(capsys, "show", str(spec), "--json"))
    assert facts["fits"] is False
    assert facts["params"] > facts["budget"] == 5_000_000
    assert "over the budget" in printed(capsys, "show", str(spec))
    assert "fits" in printed(capsys, "show", str(spec), "--budget", "20M")


def test_show_prints_every_layer_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", "seed003")
    for part in ("stages.2.2.branch.conv2", "589,824", "256x8x8", "4,697,162 parameters", "798,689,792 MACs"):
        assert part in text


def test_recipes_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "recipes", "--json"))
    assert {"digits", "cifar10-94", "seed002", *REPORTED} <= {row["name"] for row in rows}
    assert all(row["params"] <= row["budget"] for row in rows)
    assert "cifar10-94" in printed(capsys, "recipes")


def test_a_network_is_fitted_to_a_budget(capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path) -> None:
    """Under a name of its own, so that it lies beside the recipe's own run; --epochs is still told of."""
    words = ("train", str(recipe_file), "--out", str(tmp_path / "runs"), "--epochs", "1")
    printed(capsys, *words)
    assert "of the budget of 10,000: fits" in printed(capsys, *words, "--fit", "10k")
    shown = json.loads(printed(capsys, "show", str(recipe_file), "--fit", "10k", "--json"))
    own, fitted = (read_record(tmp_path / "runs" / name / "0") for name in ("tiny", "tiny-fit-10k"))
    assert 9_800 <= fitted.params <= fitted.budget == 10_000
    assert (fitted.recipe, fitted.epochs) == ("tiny-fit-10k", 1)
    assert fitted.protocol["deviations"] == own.protocol["deviations"] != []
    assert (shown["spec"], shown["params"], shown["budget"]) == (fitted.spec, fitted.params, 10_000)
    assert load(tmp_path / "runs" / "tiny-fit-10k" / "0").spec.to_dict() == fitted.spec


def test_what_a_command_changes_of_a_published_setting_is_a_deviation(recipe_file: Path, tmp_path: Path) -> None:
    recipe_file.write_text(recipe_file.read_text() + "deviations: [other rates]\n")
    out = ["--out", str(tmp_path / "runs")]
    assert main(["train", str(recipe_file), *out, "--train.epochs", "1", "--optim.lr", "0.05"]) == 0
    said = read_record(tmp_path / "runs" / "tiny" / "0").protocol["deviations"]
    assert said == ["other rates", "overridden on the command line: train.epochs 1, optim.lr 0.05"]


def test_train_evaluate_report_compare(capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    text = printed(capsys, "train", str(recipe_file), "--runs", "2", "--out", out, "--train.epochs", "2")
    lines = text.splitlines()
    assert re.match(r"tiny: [\d,]+ parameters, .* of the budget of 5,000,000: fits", lines[0])
    for part in ("test accuracy", "with test-time augmentation", "images/s", "run folder", "mean ± deviation"):
        assert part in text
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert summary["accuracy"]["n"] == 2
    later = ("train", str(recipe_file), "--out", out, "--seed")
    printed(capsys, *later, "4", "--train.epochs", "1")
    assert "mean ± deviation" in printed(capsys, *later, "2", "--train.epochs", "2")
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert summary["seeds"] == [0, 1, 2]  # not that of other settings
    found = [read_record(tmp_path / "runs" / "tiny" / seed) for seed in "01"]
    other = replace(found[0], data={**found[0].data, "digest": "of other images"})
    assert [run.seed for run in runs_alike(tmp_path / "runs" / "tiny", found[1])] == [0, 1, 2]
    assert not runs_alike(tmp_path / "runs" / "tiny", other)

    record = read_record(tmp_path / "runs" / "tiny" / "1")
    scored = json.loads(printed(capsys, "evaluate", f"{out}/tiny/1", "--tta", "--json"))
    assert scored["accuracy_tta"] == record.test.accuracy_tta
    assert "precision" in printed(capsys, "evaluate", f"{out}/tiny/1")

    page = tmp_path / "page.html"
    assert "4 runs" in printed(capsys, "report", f"{out}/tiny", "--out", str(page))
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")

    other = ("train", str(recipe_file), "--runs", "2", "--out", out, "--name", "other", "--train.epochs", "1")
    assert fails(capsys, *other).startswith(
        "error: unknown option (--name): recipe fields are given as --section.field;"
    )
    renamed = tmp_path / "other.yaml"
    renamed.write_text(yaml.safe_dump({**TINY, "name": "other"}))
    printed(capsys, "train", str(renamed), "--runs", "2", "--out", out, "--train.epochs=1")
    compared = json.loads(printed(capsys, "compare", f"{out}/tiny", f"{out}/other", "--json"))
    assert compared["baseline"].startswith("tiny")
    difference = compared["differences"]["other"]
    assert difference["interval"][0] <= difference["difference"] <= difference["interval"][1]
    assert "points" in printed(capsys, "compare", f"{out}/tiny", f"{out}/other")


def test_several_runs_read_the_data_once_and_are_as_runs_alone(
    capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr("resfit.run.load_dataset", lambda *a, **o: read.append(a) or load_dataset(*a, **o))
    words = ("train", str(recipe_file), "--train.epochs", "1", "--out")
    printed(capsys, *words, f"{tmp_path}/together", "--runs", "2")
    assert len(read) == 1
    printed(capsys, *words, f"{tmp_path}/alone", "--seed", "1")
    together, alone = (load(tmp_path / place / "tiny" / "1").state_dict() for place in ("together", "alone"))
    assert all(torch.equal(value, alone[name]) for name, value in together.items())


def test_train_shortens_a_recipe_in_proportion(
    capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    steps = ("--schedule.name", "multistep", "--schedule.milestones", "[1.5]")
    printed(capsys, "train", str(recipe_file), "--out", str(out), "--epochs", "2", "--fraction", "0.5", *steps)
    config = read_record(out / "tiny" / "0").config
    assert (config["train"]["epochs"], config["schedule"]["milestones"]) == (2, [1.0])
    assert config["data"]["fraction"] == 0.5
    assert config["deviations"][-1] == "scaled: 2 instead of 3 epochs, 0.5 of the training images"
    assert "(--epochs)" in fails(capsys, "train", str(recipe_file), "--epochs", "0")
    assert "give only the run folder" in fails(capsys, "train", "--resume", str(out / "tiny" / "0"), "--epochs", "2")
    assert "give only the run folder" in fails(capsys, "train", "--resume", str(out / "tiny" / "0"), "--fit", "2k")


def test_compare_holds_like_against_like(capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path) -> None:
    tta, plain = tmp_path / "tta", tmp_path / "plain"
    short = ("train", str(recipe_file), "--epochs", "1", "--out")
    printed(capsys, *short, str(tta))
    printed(capsys, *short, str(plain), "--evaluate.tta", "none", "--evaluate.selection", "best-test")
    records = [read_record(folder / "tiny" / "0") for folder in (tta, plain)]
    both = (str(tta), str(tta / "tiny" / "0"), str(plain))
    compared = json.loads(printed(capsys, "compare", *both, "--json"))
    assert compared["measure"] == "accuracy"
    assert [runs["n"] for runs in compared["runs"].values()] == [1, 1]
    assert [runs["mean"] for runs in compared["runs"].values()] == [record.test.accuracy for record in records]
    table = " ".join(printed(capsys, "compare", *both).split())
    assert "best-test" in table and "(peeked)" in table and "not independent" not in table
    assert json.loads(printed(capsys, "compare", both[0], "--json"))["measure"] == "accuracy with TTA"


def test_compare_tells_of_repeated_seeds(capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path) -> None:
    places = [str(tmp_path / name) for name in ("a", "b")]
    for place in places:
        printed(capsys, "train", str(recipe_file), "--epochs", "1", "--out", place)
    assert "tiny: runs of the same seed are not independent (seed 0)" in printed(capsys, "compare", *places)
    assert json.loads(printed(capsys, "compare", *places, "--json"))["repeated"] == {"tiny": [0]}


def test_a_report_replaces_no_file_but_a_report(
    capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path
) -> None:
    printed(capsys, "train", str(recipe_file), "--epochs", "1", "--out", str(tmp_path / "runs"))
    page, mine = tmp_path / "page.html", tmp_path / "mine.html"
    for again in ([], [str(tmp_path / "runs" / "tiny" / "0")]):
        text = printed(capsys, "report", str(tmp_path / "runs"), *again, "--out", str(page))
        assert text.endswith("page.html: 1 run\n")
    for other in ("mine", '<meta name="generator" content="resfit">'):  # a study's page
        mine.write_text(other)
        told = fails(capsys, "report", str(tmp_path / "runs"), "--out", str(mine))
        assert "the file exists and is not a resfit report" in told and mine.read_text() == other


def test_a_renamed_run_is_not_resumed_as_another(
    capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path
) -> None:
    printed(capsys, "train", str(recipe_file), "--epochs", "1", "--out", str(tmp_path / "runs"))
    (tmp_path / "runs" / "tiny").rename(tmp_path / "runs" / "old")
    assert "rename it back to tiny" in fails(capsys, "train", "--resume", str(tmp_path / "runs" / "old" / "0"))


def test_the_time_left_counts_the_epochs_of_this_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from resfit import progress
    from resfit.progress import Progress
    from resfit.record import EpochPoint

    clock = iter((1000.0, 1010.0))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    shown = Progress(epochs=100)
    times = {"lr": 0.1, "seconds": 10.0, "images": 1}
    unseen = dict.fromkeys(("val_loss", "val_accuracy", "test_accuracy"))
    shown.epoch_ended(EpochPoint(epoch=90, train_loss=1.0, train_accuracy=0.5, **unseen, **times))
    assert "about 1:40 left" in capsys.readouterr().err


def test_resume_needs_nothing_but_the_folder(
    capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resfit import progress

    interrupt = {"on": True}

    def epoch_ended(self: object, point: object) -> None:
        if interrupt["on"] and point.epoch == 2:  # type: ignore[attr-defined]
            raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()  # while a class is made

    monkeypatch.setattr(progress.Progress, "epoch_ended", epoch_ended)
    words = ["train", str(recipe_file), "--out", str(tmp_path / "runs")]
    assert main(words) == 130
    assert "--resume" in capsys.readouterr().err
    interrupt["on"] = False
    folder = tmp_path / "runs" / "tiny" / "0"
    assert "continue with --resume" in fails(capsys, *words)
    for also in (words[1:2], ["--seed", "0"], ["--out", str(tmp_path / "other")]):  # none is dropped in silence
        assert fails(capsys, "train", *also, "--resume", str(folder)).endswith("give only the run folder")
    assert "test accuracy" in printed(capsys, "train", "--resume", str(folder))
    assert read_record(folder).epochs == 3
    assert "a finished run already exists" in fails(capsys, *words)


def test_a_later_run_that_lies_there_is_found_before_the_first_begins(
    capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    unfinished = out / "tiny" / "1"
    unfinished.mkdir(parents=True)
    (unfinished / "state.pt").write_bytes(b"a state")
    words = ["train", str(recipe_file), "--out", str(out), "--runs", "2"]
    assert f"an unfinished run already exists ({unfinished}): continue with --resume" in fails(capsys, *words)
    assert not (out / "tiny" / "0").exists()


def test_a_run_beside_a_damaged_record_ends_well_and_names_it(
    capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "runs" / "tiny" / "1" / "record.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    assert main(["train", str(recipe_file), "--out", str(tmp_path / "runs"), "--train.epochs", "1"]) == 0
    assert f"no summary of all runs: damaged record ({damaged}" in capsys.readouterr().err
    assert read_record(tmp_path / "runs" / "tiny" / "0").seed == 0


def test_runs_in_processes_of_their_own_go_on_where_they_stopped(
    capsys: pytest.CaptureFixture[str], recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    words = ["train", str(recipe_file), "--out", str(out), "--workers", "2", "--device", "cpu", "--train.epochs", "1"]
    assert "2 of 2 runs are finished" in printed(capsys, *words, "--runs", "2")
    assert read_record(out / "tiny" / "0").env["threads"] == max(1, cores() // 2)
    before = [(out / "tiny" / seed / "record.json").read_bytes() for seed in "01"]
    assert main([*words, "--runs", "3"]) == 0
    told = capsys.readouterr()
    assert "1 runs to do, 2 already done" in told.err and "3 of 3 runs are finished" in told.out
    assert [(out / "tiny" / seed / "record.json").read_bytes() for seed in "01"] == before
    assert json.loads((out / "tiny" / "summary.json").read_text())["seeds"] == [0, 1, 2]
    assert "a run with other settings already exists" in fails(capsys, *words, "--optim.lr", "0.5")
    tuned = ["--init", str(out / "tiny" / "0"), "--out", str(tmp_path / "tuned")]
    assert main([*words, *tuned]) == 0
    assert read_record(tmp_path / "tuned" / "tiny" / "0").init is not None


def test_without_ray_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "resfit.executors.cluster", raising=False)
    assert "pip install 'resfit[ray]'" in fails(capsys, "train", "digits", "--ray", "auto")


MISTAKES = {
    "unknown recipe": (["train", "cifar10-94x"], "unknown recipe (cifar10-94x): did you mean cifar10-94?"),
    "unknown target": (["show", "digit"], "neither a named recipe nor a file (digit): did you mean digits?"),
    "unknown command": (["trian", "digits"], "unknown command (trian): did you mean train?"),
    "unknown section": (["train", "digits", "--trian.epochs", "3"], "unknown field (trian): did you mean train?"),
    "unknown field": (["train", "digits", "--train.epoch", "3"], "unknown field (train.epoch): did you mean epochs?"),
    "unknown option": (["train", "digits", "--sed", "3"], "unknown option (--sed): did you mean --seed?"),
    "unknown option = value": (["train", "digits", "--epoch=3"], "unknown option (--epoch=3): did you mean --epochs?"),
    "field without section": (["train", "digits", "--lr", "0.1"], "recipe fields are given as --section.field; see"),
    "a word too many": (["train", "digits", "extra"], "unknown argument (extra): "),
    "unknown option alone": (["--versio"], "unknown option (--versio): did you mean --version?"),
    "no value": (["train", "digits", "--train.epochs"], "no value (--train.epochs): give one"),
    "an option for a value": (["train", "digits", "--optim.lr", "--epochs", "1"], "no value (--optim.lr): give one"),
    "a name too long": (["train", "a" * 300 + ".yaml"], "cannot read"),
    "a path that is refused": (["report", "a" * 300], "(file name too long): check the path and its permissions"),
    "wrong type": (["train", "digits", "--train.epochs", "many"], "'many' is not a whole number (train.epochs)"),
    "channels of 0": (["train", "digits", "--spec.stages.0.channels", "0"], "channels is 0 (spec.stages.0.channels)"),
    "over budget": (["train", "seed003", "--budget", "4697161"], "1 over the budget of 4,697,161 (spec): the nearest"),
    "no runs": (["train", "digits", "--runs", "0"], "runs is 0 (--runs): give at least 1"),
    "no workers": (["train", "digits", "--workers", "0"], "workers is 0 (--workers): give at least 1"),
    "part of GPUs": (["train", "digits", "--ray", "auto", "--gpus-per-run", "1.5"], "gpus-per-run is 1.5"),
    "CPUs without Ray": (["train", "digits", "--cpus-per-run", "2"], "give --ray as well"),
    "log elsewhere": (["train", "digits", "--workers", "2", "--log", "mlflow"], "(--workers, --ray): leave these out"),
    "negative seed": (["train", "digits", "--seed", "-1"], "-1 is not a seed (seed)"),
    "seed too large": (["train", "digits", "--seed", str(2**63)], f"{2**63} is not a seed (seed)"),
    "last seed too large": (
        ["train", "digits", "--runs", "2", "--seed", str(2**63 - 1)],
        f"{2**63} is not a seed (seed)",
    ),
    "seed too large to search": (["tune", "digits", "--seed", str(2**63)], f"{2**63} is not a seed (seed)"),
    "no recipe": (["train"], "no recipe (RECIPE)"),
    "not a run": (["report", "nowhere"], "no finished run (nowhere"),
    "no model": (["evaluate", "nowhere"], "no model (nowhere)"),
    "no such device": (["train", "digits", "--device", "tpu9"], "device not available"),
    "empty budget": (["train", "digits", "--budget", ""], "'' is not a count (--budget)"),  # of an unset variable
    "empty budget to show": (["show", "digits", "--budget", ""], "'' is not a count (--budget)"),
    "empty budget to search": (["tune", "digits", "--budget", ""], "'' is not a count (--budget)"),
    "empty MACs": (["design", "--budget", "100k", "--macs", ""], "'' is not a count (--macs)"),
    "a name that no file can have": (["train", 300 * "a"], "unknown recipe (aaa"),
    "two budgets": (["train", "digits", "--fit", "20k", "--budget", "30k"], "leave --budget out"),
    "two budgets to show": (["show", "digits", "--fit", "20k", "--budget", "30k"], "leave --budget out"),
    "nothing fits to show": (
        ["show", "digits", "--fit", "100"],
        "no network of digits's proportions has 100 parameters",
    ),
    "nothing fits": (
        ["train", "digits", "--fit", "100"],
        "no network of digits's proportions has 100 parameters or less",
    ),
    "bad fit": (["train", "digits", "--fit", "5Q"], "'5Q' is not a count (--fit)"),
    "bad count": (["show", "digits", "--budget", "5Q"], "'5Q' is not a count (--budget)"),
}


@pytest.mark.parametrize(("words", "line"), MISTAKES.values(), ids=MISTAKES)
def test_each_mistake_has_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in fails(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_offline_opens_no_socket(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.delenv("RESFIT_DATA_DIR", raising=False)
    monkeypatch.setenv("RESFIT_OFFLINE", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = fails(capsys, "train", "cifar10-94", "--offline", "--out", str(tmp_path / "runs"))
    assert "offline" in line


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_number_of_classes_that_the_folder_has_not_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / "images" / label / f"{n}.png")
    words = [command, "folder", "--data-dir", str(tmp_path / "images"), "--spec.num_classes", "3"]
    assert "the folder has 2 classes, not 3 (--spec.num_classes)" in fails(capsys, *words)


def test_a_network_for_a_folder_is_fitted_with_the_folder_s_classes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, two_classes: Path
) -> None:
    """By the command, although the recipe's own network is over its budget, and in a study."""
    where = ("--data-dir", str(two_classes), "--out", str(tmp_path / "runs"), "--epochs", "1")
    size = ("--spec.input.size", "8")
    printed(capsys, "train", "folder", *where, *size, "--spec.stages.2.channels", "1024", "--fit", "20k")
    study = tmp_path / "sizes.yaml"
    study.write_text(yaml.safe_dump({"recipe": "folder", "baseline": "a", "runs": 1, "points": {"a": {"fit": "20k"}}}))
    printed(capsys, "study", str(study), *where, *size)
    for run in ("folder-fit-20k", "sizes/a"):
        record = read_record(tmp_path / "runs" / run / "0")
        assert record.spec["num_classes"] == 2
        assert 19_600 <= record.params <= record.budget == 20_000


def test_a_folder_with_one_class_and_a_corrupt_image_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    only = tmp_path / "images" / "cat"
    only.mkdir(parents=True)
    (only / "a.png").write_bytes(b"no picture")
    line = fails(capsys, "train", "folder", "--data-dir", str(tmp_path / "images"), "--out", str(tmp_path / "runs"))
    assert "class" in line
    (tmp_path / "images" / "dog").mkdir()
    for n in range(10):
        for label in ("cat", "dog"):
            Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / "images" / label / f"{n}.png")
    (tmp_path / "images" / "dog" / "b.png").write_bytes(b"")
    line = fails(capsys, "train", "folder", "--data-dir", str(tmp_path / "images"), "--out", str(tmp_path / "runs"))
    assert "a.png" in line
    assert "b.png" in line


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "while a class is made"])
def test_what_leaves_no_checkpoint_is_not_to_be_resumed(
    wrapped: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(target: str) -> None:
        if wrapped:  # as Python does before 3.12
            raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()
        raise KeyboardInterrupt

    monkeypatch.setattr("resfit.target.find_target", stopped)
    assert main(["show", "digits"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="unknown recipe"):
        main(["train", "nope", "--debug"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "resfit train digits" in capsys.readouterr().out
    assert printed(capsys, "--version").startswith("resfit ")
    with pytest.raises(SystemExit) as done:
        main(["train", "--help"])
    assert done.value.code == 0
    assert "label_smoothing" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["show", "seed003"], ["report", "--help"]])
def test_what_needs_no_torch_does_not_import_it(words: list[str]) -> None:
    code = f"import sys\nfrom resfit.cli import main\ntry:\n    status = main({words!r})\nexcept SystemExit as done:\n"
    code += "    status = done.code\nprint(status, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_what_the_package_exports() -> None:
    import resfit

    assert set(resfit.__all__) <= set(dir(resfit))
    for name in resfit.__all__:
        assert getattr(resfit, name) is not None, name
    import resfit.cost
    import resfit.evaluate
    import resfit.predict
    import resfit.train  # these modules share their names with functions, which have to stay

    assert all(map(callable, (resfit.cost, resfit.evaluate, resfit.predict, resfit.train)))
    with pytest.raises(AttributeError, match=r"replace resfit\.run\.train where it is used"):
        resfit.train = print  # it would have no effect


def test_the_package_imports_nothing_of_its_own_ahead_of_its_use() -> None:
    code = "import sys, resfit; print([name for name in sys.modules if name.startswith('resfit.')])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["show", "cifar10-94", "--json"], ["recipes"]])
def test_a_full_disk_behind_the_output_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "resfit", *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written, its disk is full (stdout): free some space\n"
