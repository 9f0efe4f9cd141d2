"""Searches: the budget costs nothing, the test set stays out, what was killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from torch import Tensor

import resfit.runner
from helpers.tiny_recipe import TINY
from resfit.cli import main
from resfit.cost import cost
from resfit.environment import command_line, without_password
from resfit.errors import BadInput, RunFailed
from resfit.recipe import Recipe
from resfit.record import EpochPoint
from resfit.tunerecord import TuneRecord, read_search

pytest.importorskip("optuna")

from resfit.tune.search import Search, _open, _work_in_parallel, run_search
from resfit.tune.space import Dimension, Space

RATES = Space(name="rates", dimensions={"optim.lr": Dimension(low=0.01, high=1.0, log=True)})


def one_epoch(tiny: Recipe) -> Recipe:
    return tiny.replace({"train.epochs": 1, "data.fraction": 0.2})


def search(recipe: Recipe, tmp_path: Path, space: Space = RATES, **options: object) -> Search:
    return Search(recipe=recipe, space=space, storage=str(tmp_path / "journal.log"), **options)  # type: ignore[arg-type]


def test_a_search_keeps_its_trials_and_finds_the_best(tiny: Recipe, tmp_path: Path) -> None:
    found = run_search(search(one_epoch(tiny), tmp_path), 4)
    assert [trial.outcome for trial in found.trials] == ["complete"] * 4
    accuracies = [trial.accuracy or 0 for trial in found.trials]
    assert found.best == accuracies.index(max(accuracies))
    assert found.best_recipe is not None
    best = Recipe.from_dict(found.best_recipe)
    assert best.optim.lr == found.trials[found.best].values["optim.lr"]
    assert (best.name, best.train.epochs) == ("tiny-tuned", 1)
    assert found.importance == pytest.approx({"optim.lr": 1.0})
    assert TuneRecord.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_the_test_set_is_not_even_scored(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    true = resfit.runner.predict_logits

    def spy(net: object, images: Tensor, *rest: object, **options: object) -> object:
        scored.append(len(images))
        return true(net, images, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(resfit.runner, "predict_logits", spy)
    found = run_search(search(one_epoch(tiny), tmp_path), 1)
    assert scored == [200]  # the validation images of TINY, once; 360 are the test images
    assert (found.test_scored, found.judged_by, found.data["n_val"], found.data["n_test"]) == (0, "validation", 200, 0)
    with pytest.raises(BadInput, match="must not use the test set"):
        search(tiny.replace({"evaluate.selection": "best-test"}), tmp_path)
    with pytest.raises(BadInput, match="no validation split"):
        search(tiny.replace({"data.val": 0}), tmp_path)


@pytest.mark.parametrize(("selection", "accuracy"), [("last", 0.5), ("best-val", 0.9)])
def test_a_trial_counts_by_the_weights_that_its_recipe_selects(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, accuracy: float
) -> None:
    point = EpochPoint(epoch=1, train_loss=1.0, train_accuracy=0.5, val_loss=1.0, val_accuracy=0.9, lr=0.1, seconds=1.0)
    curve = (point, replace(point, epoch=2, val_accuracy=0.5))
    monkeypatch.setattr("resfit.tune.search.validation_curve", lambda *arguments, **options: curve)
    found = run_search(search(tiny.replace({"evaluate.selection": selection}), tmp_path), 1)
    assert found.trials[0].accuracy == accuracy


@pytest.mark.parametrize("split", ["val", "validation", "class"])
def test_a_folder_may_bring_its_own_validation_images(tiny: Recipe, tmp_path: Path, split: str) -> None:
    for name in ("train", split, "test") if split != "class" else ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
    recipe = tiny.replace({"data.name": "folder", "data.val": 0})
    if split != "class":
        search(recipe, tmp_path, data_dir=tmp_path / "images")
        return
    with pytest.raises(BadInput, match="no validation split"):
        search(recipe, tmp_path, data_dir=tmp_path / "images")


def test_over_the_budget_nothing_is_built_and_nothing_counts(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    true = resfit.runner.build

    def spy(spec: object, *rest: object) -> object:
        net = true(spec, *rest)  # type: ignore[arg-type]
        built.append(sum(p.numel() for p in net.parameters()))
        return net

    monkeypatch.setattr(resfit.runner, "build", spy)
    widths = Space(name="widths", dimensions={"spec.stages.1.channels": Dimension(low=8, high=1000)})
    recipe = one_epoch(tiny).replace({"budget": 40_000})
    found = run_search(search(recipe, tmp_path, widths), 3)
    refused = [trial for trial in found.trials if trial.outcome == "refused"]
    assert found.trained == 3 == len(built) and max(built) <= 40_000
    assert len(refused) > 0 and all(trial.params and trial.params > 40_000 for trial in refused)
    assert all("over the budget of 40,000" in trial.note and trial.seconds is None for trial in refused)


def test_settings_that_make_no_network_are_refused_as_well(tiny: Recipe, tmp_path: Path) -> None:
    pools = Space(name="pools", dimensions={"spec.pool.size": Dimension(choices=(64, 128))})
    with pytest.raises(RunFailed, match=r"trials in a row were refused .*a window of"):
        run_search(search(one_epoch(tiny), tmp_path, pools), 1)


def test_a_search_goes_on_to_its_count_and_refuses_another_in_its_place(tiny: Recipe, tmp_path: Path) -> None:
    recipe = one_epoch(tiny)
    first = run_search(search(recipe, tmp_path), 2)
    second = run_search(search(recipe, tmp_path), 3)
    assert second.trials[:2] == first.trials and len(second.trials) == 3
    rates = [trial.values["optim.lr"] for trial in second.trials]
    assert len(set(rates)) == 3, "a resumed search draws anew"
    assert len(run_search(search(recipe, tmp_path), 3).trials) == 3
    with pytest.raises(BadInput, match=r"another search already exists .*epochs changed"):
        run_search(search(recipe, tmp_path, epochs=2), 4)
    with pytest.raises(BadInput, match=r"another search already exists .*recipe changed"):
        run_search(search(recipe.replace({"optim.momentum": 0.5}), tmp_path), 4)


def test_trials_on_other_images_are_refused(tiny: Recipe, tmp_path: Path, two_classes: Path) -> None:
    recipe = one_epoch(tiny).replace({"data.name": "folder", "data.fraction": 1.0, "data.val": 0.25})
    run_search(search(recipe, tmp_path, data_dir=two_classes), 1)
    (two_classes / "dark" / "0.png").unlink()
    with pytest.raises(BadInput, match="earlier trials were trained on other images"):
        run_search(search(recipe, tmp_path, data_dir=two_classes), 2)


def test_a_folders_classes_are_counted_ahead_of_the_trials(
    tiny: Recipe, tmp_path: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yaml"
    plain = {**TINY, "data": {"name": "folder", "val": 0.25}, "train": {**TINY["train"], "epochs": 1}}
    file.write_text(yaml.safe_dump(plain))
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: {low: 1.0e-2, high: 1.0, log: true}\n")
    words = ["tune", str(file), "--space", str(space), "--trials", "1", "--data-dir", str(two_classes)]
    assert main([*words, "--out", str(tmp_path / "runs")]) == 0, capsys.readouterr().err
    found = read_search(tmp_path / "runs" / "tiny-tune" / "tune.json")
    assert [trial.params for trial in found.trials] == [cost(replace(tiny.spec, num_classes=2)).params]
    assert Recipe.from_dict(found.config).spec.num_classes == 2


def test_an_ended_search_leaves_its_trials(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where what is left of the space is refused, the trials before are not lost."""
    file, space = tmp_path / "tiny.yaml", tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({**TINY, "train": {**TINY["train"], "epochs": 1}}))
    space.write_text("optim.lr: {low: 1.0e-2, high: 1.0, log: true}\n")
    words = ["tune", str(file), "--space", str(space), "--out", str(tmp_path / "runs")]
    assert main([*words, "--trials", "1"]) == 0, capsys.readouterr().err
    folder = tmp_path / "runs" / "tiny-tune"
    for name in ("tune.json", "report.html", "best.yaml"):
        (folder / name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resfit.tune.search._refusal", lambda *given: "nothing fits")
        assert main([*words, "--trials", "2"]) == 1
    assert "trials in a row were refused (the last: nothing fits)" in capsys.readouterr().err
    found = read_search(folder / "tune.json")
    assert [trial.outcome for trial in found.trials].count("complete") == 1
    assert found.best == 0 and (folder / "report.html").exists() and (folder / "best.yaml").exists()


def test_a_torn_last_line_is_dropped(tiny: Recipe, tmp_path: Path) -> None:
    recipe = one_epoch(tiny)
    run_search(search(recipe, tmp_path), 1)
    with (tmp_path / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    assert [trial.outcome for trial in run_search(search(recipe, tmp_path), 2).trials] == ["complete"] * 2


def test_a_trial_that_diverges_counts_and_the_search_goes_on(tiny: Recipe, tmp_path: Path) -> None:
    wild = Space(name="wild", dimensions={"optim.lr": Dimension(choices=(1e30, 0.1))})
    found = run_search(search(one_epoch(tiny).replace({"optim.momentum": 0.0}), tmp_path, wild), 5)
    outcomes = {trial.outcome: trial for trial in found.trials}
    assert set(outcomes) == {"complete", "diverged"} and found.trained == 5
    assert "not finite" in outcomes["diverged"].note


def test_hopeless_trials_are_given_up(tiny: Recipe, tmp_path: Path) -> None:
    rates = Space(name="rates", dimensions={"optim.lr": Dimension(choices=(0.1, 1e-7))})
    found = run_search(search(tiny.replace({"train.epochs": 3, "data.fraction": 0.2}), tmp_path, rates), 14)
    pruned = [trial for trial in found.trials if trial.outcome == "pruned"]
    assert pruned and all(len(trial.curve) < 3 for trial in pruned)
    assert found.trained == 14


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    recipe, space = tmp_path / "tiny.yaml", tmp_path / "space.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, "train": {**TINY["train"], "epochs": 4}}))
    space.write_text("optim.lr: {low: 1.0e-2, high: 1.0, log: true}\nspec.stages.*.channels: {choices: [8, 16, 900]}\n")
    return str(recipe), str(space)


def test_the_command_leaves_a_recipe_that_trains(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, space = files
    words = ["tune", recipe, "--space", space, "--trials", "3", "--epochs", "1", "--fraction", "0.3"]
    assert main([*words, "--out", str(tmp_path), "--budget", "100k"]) == 0
    told = capsys.readouterr()
    assert "(3 of 3 trained)" in told.err
    assert "the test set was not scored" in told.out
    folder = tmp_path / "tiny-tune"
    assert {path.name for path in folder.iterdir()} == {"journal.log", "tune.json", "best.yaml", "report.html"}
    best = Recipe.from_yaml(folder / "best.yaml")
    assert (best.train.epochs, best.data.fraction, best.budget) == (4, 1.0, 100_000)
    assert read_search(folder).trained == 3
    assert "The test set was never used" in (folder / "report.html").read_text()
    assert main(["train", str(folder / "best.yaml"), "--train.epochs", "1", "--out", str(tmp_path)]) == 0
    for wrong in ("--trials 0", "--space nowhere", "--data.val 0", "--storage nosuch://x", "--optim.lr 1"):
        assert main([*words, "--out", str(tmp_path / "wrong"), *wrong.split()]) == 2


def test_an_edited_recipe_is_not_replaced(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, space = tmp_path / "tiny.yaml", tmp_path / "space.yaml"
    file.write_text(one_epoch(tiny).to_yaml())
    space.write_text("optim.lr: {low: 1.0e-2, high: 1.0, log: true}\n")
    words = ["tune", str(file), "--space", str(space), "--out", str(tmp_path)]
    best = tmp_path / "tiny-tune" / "best.yaml"
    for trials in ("1", "2"):  # its own, it replaces
        assert main([*words, "--trials", trials]) == 0
    best.write_text("# mine\n" + best.read_text())
    capsys.readouterr()
    assert main([*words, "--trials", "3"]) == 0
    assert best.read_text().startswith("# mine") and "was edited and is left as it is" in capsys.readouterr().err


def test_a_draw_that_the_images_do_not_allow_is_refused(tiny: Recipe, tmp_path: Path) -> None:
    space = Space(name="fractions", dimensions={"data.fraction": Dimension(choices=(0.001, 1.0))})
    found = run_search(search(one_epoch(tiny), tmp_path, space), 3)
    refused = [trial for trial in found.trials if trial.outcome == "refused"]
    assert found.trained == 3 and refused and all("includes none of class" in trial.note for trial in refused)
    nothing = Space(name="nothing", dimensions={"data.fraction": Dimension(choices=(0.001, 0.002))})
    with pytest.raises(RunFailed, match="100 trials in a row were refused"):
        run_search(search(one_epoch(tiny), tmp_path / "nothing", nothing), 3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_search_goes_on(files: tuple[str, str], tmp_path: Path, workers: str) -> None:
    recipe, space = files
    command = [
        sys.executable,
        "-m",
        "resfit",
        "tune",
        recipe,
        "--space",
        space,
        "--trials",
        "8",
        "--out",
        str(tmp_path),
    ]
    command += ["--workers", workers, "--train.epochs", "10"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    for line in first.stderr:
        if "(2 of 8 trained)" in line:
            break
    time.sleep(0.5)  # into the next trial
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(10 if workers != "1" else 0)  # the children end with their parent
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "8 of 8 trials were trained" in done.stdout
    found = read_search(tmp_path / "tiny-tune")
    outcomes = [trial.outcome for trial in found.trials]
    assert found.trained == 8 and "failed" in outcomes and "running" not in outcomes
    assert found.trials[0].outcome == "complete"
    assert (tmp_path / "tiny-tune" / "best.yaml").exists()


def test_its_processes_spread_over_the_gpus(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Search] = []

    def start(work: object, each: Search, trials: int, tells: object, share: int) -> object:
        begun.append(each)
        return SimpleNamespace(join=lambda: None, exitcode=0, is_alive=lambda: False)

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("resfit.processes.start", start)
    _work_in_parallel(search(tiny, tmp_path), 4, workers=3)
    assert [each.device for each in begun] == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_database_s_password_is_never_told(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql://me:secret@host/db"
    assert Search(recipe=tiny, space=RATES, storage=address).place == "host/db"
    words = ["--storage", address, "--log", "mlflow=https://you:hidden@there", "--storage=postgresql://h/d?password=p"]
    monkeypatch.setattr("sys.argv", ["resfit", "tune", "tiny", *words])
    told = command_line()
    assert "://***@host/db" in told and "mlflow=https://***@there" in told and "password=***" in told
    assert not any(secret in told for secret in ("secret", "hidden", "password=p"))
    assert "secret" not in Search(recipe=tiny, space=RATES, storage="postgresql://h/db?user=me&password=secret").place


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("postgresql://u:p/w@h/db", "postgresql://***@h/db"),
        ("postgresql://u:p@ss@h/db", "postgresql://***@h/db"),
        ("postgresql://h/db?a=1&PASSWORD=p&b=2", "postgresql://h/db?a=1&PASSWORD=***&b=2"),
        ("http://token@h/", "http://***@h/"),
        ("see http://a, mail me@b.c", "see http://a, mail me@b.c"),
        ("see http://a:80/x, mail me@b.c", "see http://a:80/x, mail me@b.c"),
        ("postgresql://h/db?password=p is refused", "postgresql://h/db?password=*** is refused"),
        ("a@b://c and C:/runs", "a@b://c and C:/runs"),
    ],
)
def test_what_of_an_address_is_not_told(words: str, told: str) -> None:
    assert without_password(words) == told


@pytest.mark.parametrize("content", [b"one: 1", b"SQLite format 3\0...", b"[]\n"], ids=["yaml", "database", "json"])
def test_a_file_that_is_no_journal_stays_as_it_is(tiny: Recipe, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.log").write_bytes(content)
    with pytest.raises(BadInput, match=r"^not a journal of trials .*: give another --storage"):
        run_search(search(tiny, tmp_path), 1)
    assert (tmp_path / "journal.log").read_bytes() == content


def test_results_of_another_search_stay(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, space = files
    words = ["tune", recipe, "--space", space, "--trials", "1", "--epochs", "1", "--fraction", "0.3"]
    words += ["--out", str(tmp_path)]
    assert main([*words, "--storage", str(tmp_path / "first.log")]) == 0
    before = (tmp_path / "tiny-tune" / "tune.json").read_text()
    capsys.readouterr()
    assert main([*words, "--storage", str(tmp_path / "second.log"), "--seed", "3"]) == 2
    assert "another search already exists" in (told := capsys.readouterr().err) and "seed changed" in told
    assert (tmp_path / "tiny-tune" / "tune.json").read_text() == before
    assert main([*words, "--storage", str(tmp_path / "first.log"), "--trials", "2"]) == 0


def test_a_trial_that_another_machine_began_is_told_of(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = search(one_epoch(tiny), tmp_path)
    trial = _open(own).ask()
    trial.set_user_attr("process", "gone:7")
    assert run_search(own, 2).trained == 1
    assert (
        "trial 0: still running in gone:7; if that process no longer exists, ask for one more trial"
        in capsys.readouterr().err
    )


def test_what_all_its_processes_stumble_over_is_told_once(
    files: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, space = files
    words = ["tune", recipe, "--space", space, "--workers", "2", "--device", "nowhere", "--out", str(tmp_path)]
    assert main(words) == 2
    told = capfd.readouterr().err
    assert told.count("error:") == 1 and "(device nowhere): give auto, cpu or cuda" in told
