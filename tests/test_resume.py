"""A run that is broken off anywhere and resumed leaves what an undisturbed one leaves, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import resfit
from helpers.runs import EVERYTHING, FOLDER, NEVER, Watcher, left_by
from helpers.tiny_recipe import TINY
from resfit import runner
from resfit.checkpoint import load_state, save_state
from resfit.cli import main
from resfit.errors import BadInput, RunFailed
from resfit.files import claimed
from resfit.interrupt import Interrupted
from resfit.recipe import Recipe
from resfit.record import RunRecord, read_record
from resfit.report.words import thread_count
from resfit.run import train

# What acts over many epochs, with what goes over a batch twice and draws most at random. So few validation images can
# improve ten times at the most: the run stops early on any machine.
OVER_EPOCHS = {
    "data.val": 10,
    "train.epochs": 40,
    "train.batch_size": 512,
    "train.patience": 2,
    "optim.sam": {"rho": 0.05},
    "augment.policy": "rand",
    "average.name": "swa",
    "average.start": 0.05,
    "schedule.final": 0.2,
    "spec.dropout.head": 0.1,
    "evaluate.selection": "best-val",
    "evaluate.tta": "flip",
}


def listener() -> Watcher:
    return Watcher(NEVER, lambda: None)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def crash() -> None:
    raise RuntimeError("the machine is gone")


@pytest.fixture(scope="module")
def everything() -> Recipe:
    return Recipe.from_dict(TINY).replace(EVERYTHING)


@pytest.fixture(scope="module")
def undisturbed(everything: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed")
    train(everything, out=out)
    return left_by(out / FOLDER)


CUTS: dict[str, tuple[int, float | None]] = {
    "after the first step": (1, 0.33),
    "in the middle": (1, 0.67),
    "after an epoch's last step": (1, 1.0),
    "at an epoch's end": (1, None),
    "before the last step": (2, 0.67),
    "after the last step": (2, 1.0),
    "before scoring": (2, None),
}


@pytest.mark.parametrize("moment", CUTS.values(), ids=CUTS)
def test_a_run_stopped_by_a_signal_resumes_to_the_same_bits(
    everything: Recipe, undisturbed: dict[str, Any], tmp_path: Path, moment: tuple[int, float | None]
) -> None:
    with pytest.raises(Interrupted, match=rf"^interrupted \(SIGTERM\): continue with resfit train --resume {tmp_path}"):
        train(everything, out=tmp_path, observer=Watcher(moment, terminate))
    epoch, done = moment
    state = load_state(tmp_path / FOLDER / "state.pt")["trainer"]
    assert (state["epoch"], state["under_way"] is None) == ((epoch, True) if done is None else (epoch - 1, False))
    train(everything, out=tmp_path, resume=True)
    assert left_by(tmp_path / FOLDER) == undisturbed


@pytest.fixture(scope="module")
def over_epochs() -> Recipe:
    return Recipe.from_dict(TINY).replace(OVER_EPOCHS)


@pytest.fixture(scope="module")
def stopped_early(over_epochs: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run of it leaves; the epoch that was chosen is neither the only one nor the last."""
    out = tmp_path_factory.mktemp("stopped_early")
    record = train(over_epochs, out=out)
    assert 3 <= record.epochs == record.protocol["best_epoch"] + 2 < 40
    return left_by(out / FOLDER)


@pytest.mark.parametrize("cut", ["first", "middle", "last", "before scoring"])
def test_a_run_with_all_that_acts_over_epochs_resumes_to_the_same_bits(
    over_epochs: Recipe, stopped_early: dict[str, Any], tmp_path: Path, cut: str
) -> None:
    end = stopped_early["epochs"]
    moments = {"first": (1, 0.33), "middle": (end // 2 + 1, 0.67), "last": (end, 1.0), "before scoring": (end, None)}
    stopped(over_epochs, tmp_path, moments[cut])
    train(over_epochs, out=tmp_path, resume=True)
    assert left_by(tmp_path / FOLDER) == stopped_early


@pytest.mark.parametrize("part", ["best", "average"])
def test_such_a_run_that_loses_a_part_of_its_state_differs(
    over_epochs: Recipe, stopped_early: dict[str, Any], tmp_path: Path, part: str
) -> None:
    """The negative control."""
    file = stopped(over_epochs, tmp_path, (stopped_early["epochs"], 1.0)) / "state.pt"
    state = load_state(file)
    if part == "best":
        state["best"] = None
    else:
        state["trainer"]["average"]["n_averaged"].zero_()
    save_state(file, state)
    train(over_epochs, out=tmp_path, resume=True)
    assert left_by(tmp_path / FOLDER) != stopped_early


@pytest.mark.parametrize("call", [1, 2, 3], ids=["validation", "last validation", "test"])
def test_a_run_that_crashes_in_evaluation_resumes_to_the_same_bits(
    everything: Recipe, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls, real = [0], runner.predict_logits

    def predict(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return real(*arguments, **options) if calls[0] != call else crash()

    monkeypatch.setattr(runner, "predict_logits", predict)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        train(everything, out=tmp_path)
    assert calls == [call]
    assert not (tmp_path / FOLDER / "record.json").exists()
    train(everything, out=tmp_path, resume=True)
    assert left_by(tmp_path / FOLDER) == undisturbed


def test_a_signal_while_the_test_set_is_scored_lets_the_run_finish(
    everything: Recipe, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.samples
    monkeypatch.setattr(runner, "samples", lambda *arguments: (terminate(), real(*arguments))[1])
    with pytest.raises(Interrupted, match="the run is finished"):
        train(everything, out=tmp_path)
    assert left_by(tmp_path / FOLDER) == undisturbed


def test_a_resume_without_a_part_of_the_state_differs(
    everything: Recipe, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """The negative control."""
    with pytest.raises(Interrupted):
        train(everything, out=tmp_path, observer=Watcher((1, 0.67), terminate))
    file = tmp_path / FOLDER / "state.pt"
    state = load_state(file)
    state["trainer"]["under_way"]["order"] = state["trainer"]["under_way"]["order"].flip(0)
    save_state(file, state)
    train(everything, out=tmp_path, resume=True)
    assert left_by(tmp_path / FOLDER) != undisturbed


def test_metrics_written_after_the_state_are_not_repeated(
    everything: Recipe, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError):  # two epochs are in metrics.jsonl, and the state is of the beginning
        train(everything, out=tmp_path, observer=Watcher((2, None), crash))
    metrics = tmp_path / FOLDER / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole[:-20])
    heard = listener()
    train(everything, out=tmp_path, resume=True, observer=heard)
    assert f"damaged metrics ({metrics}, line 2): rewritten from the checkpoint" in heard.lines
    assert left_by(tmp_path / FOLDER) == undisturbed


def test_the_state_is_saved_by_the_clock_and_the_final_one_once(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, int]] = []
    slow = {"seconds": 0.0}
    real = runner.save_state

    def save(path: Path, state: dict[str, Any]) -> None:
        now = state["trainer"]["under_way"]
        saved.append((state["trainer"]["epoch"], now["seen"] if now else 0))
        time.sleep(slow["seconds"])
        real(path, state)

    monkeypatch.setattr(runner, "save_state", save)
    recipe = tiny.replace({"train.epochs": 2, "train.batch_size": 512, "evaluate.tta": "none"})
    count = train(recipe, out=tmp_path / "seldom").data["n_train"]
    assert saved == [(0, 0), (2, 0)]
    saved.clear()
    recipe = recipe.replace({"train.checkpoint_minutes": 1e-9})
    slow["seconds"] = 0.2  # so that the next save may come after 20 s, and never more than 1 % of the time goes there
    record = train(recipe, out=tmp_path / "slow")
    assert saved == [(0, 0), (2, 0)]
    assert record.seconds_saving is not None and 0.4 <= record.seconds_saving < record.seconds_to_result
    saved.clear()
    slow["seconds"] = 0.0
    monkeypatch.setattr(runner, "_SAVES_SHARE", 1e9)
    train(recipe, out=tmp_path / "often")
    steps = [512, 1024, count]
    ends = [(0, 0), *((0, n) for n in steps), (1, 0), *((1, n) for n in steps), (2, 0)]
    assert saved == ends
    assert sorted(path.name for path in (tmp_path / "often" / FOLDER).glob("state*")) == [
        "state.previous.pt",
        "state.pt",
    ]


def test_time_for_checkpoints_is_counted_on_after_a_resume(
    everything: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.save_state
    monkeypatch.setattr(runner, "save_state", lambda path, state: (time.sleep(0.2), real(path, state)))
    stopped(everything, tmp_path)
    monkeypatch.setattr(runner, "save_state", real)
    record = train(everything, out=tmp_path, resume=True)
    assert record.seconds_saving is not None and record.seconds_saving >= 0.2
    assert read_record(tmp_path / FOLDER).seconds_saving == record.seconds_saving


def stopped(recipe: Recipe, out: Path, moment: tuple[int, float | None] = (1, 0.67)) -> Path:
    """The folder of a run that a signal stopped."""
    with pytest.raises(Interrupted):
        train(recipe, out=out, observer=Watcher(moment, terminate))
    return out / FOLDER


def test_a_changed_recipe_is_shown_and_refused_and_with_override_taken(everything: Recipe, tmp_path: Path) -> None:
    folder = stopped(everything, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = everything.replace({"optim.lr": 0.02, "train.epochs": 3})
    words = r"\(optim.lr: 0.1 -> 0.02; train.epochs: 2 -> 3\)"
    with pytest.raises(BadInput, match=rf"^the recipe has changed since the run began {words}: .*--override"):
        train(changed, out=tmp_path, resume=True)
    with pytest.raises(BadInput, match=r"a run cannot change spec.activation after it began \(.*\"relu\" -> \"gelu\""):
        train(everything.replace({"spec.activation": "gelu"}), out=tmp_path, resume=True, override=True)
    for late in ({"distill.teacher": "runs/a/0"}, {"train.skip_easy": 0.2}, {"evaluate.selection": "best-test"}):
        fixed = r"(distill|train\.skip_easy|evaluate\.selection)"
        with pytest.raises(BadInput, match=rf"a run cannot change {fixed} after it began"):
            train(everything.replace(late), out=tmp_path, resume=True, override=True)
    with pytest.raises(
        BadInput, match=r"^the recipe has changed since the run began \(train\.skip_easy_until: 1\.0 -> 0\.5\)"
    ):
        train(everything.replace({"train.skip_easy_until": 0.5}), out=tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    record = train(changed, out=tmp_path, resume=True, override=True)
    assert record.events == ("epoch 1, image 1,024: resumed with a changed recipe, " + words.replace("\\", "")[1:-1],)
    assert (record.epochs, record.config["optim"]["lr"]) == (3, 0.02)
    assert Recipe.from_yaml(folder / "recipe.yaml") == changed
    assert record.curve[0].lr < 0.02  # cosine from the new peak, from the step of the change on


def test_a_teacher_that_was_moved_is_found_where_it_is_now(tiny: Recipe, everything: Recipe, tmp_path: Path) -> None:
    """It is known by its digest; another network is refused."""
    for seed in (0, 1):
        train(tiny.replace({"train.epochs": 1}), out=tmp_path / "teachers", seed=seed)
    places = [tmp_path / "teachers" / "tiny" / str(seed) for seed in (0, 1)]
    taught = everything.replace({"distill.teacher": str(places[0])})
    stopped(taught, tmp_path)
    moved = places[0].rename(tmp_path / "moved")
    with pytest.raises(BadInput, match=r"the recipe has changed .*distill\.teacher.*--override"):
        train(taught.replace({"distill.teacher": str(moved)}), out=tmp_path, resume=True)
    for wrong in (str(places[1]), [str(moved), str(places[1])]):
        with pytest.raises(BadInput, match="the teacher has changed since the run began"):
            train(taught.replace({"distill.teacher": wrong}), out=tmp_path, resume=True, override=True)
    record = train(taught.replace({"distill.teacher": str(moved)}), out=tmp_path, resume=True, override=True)
    assert [teacher.path for teacher in record.teachers] == [str(moved)]


def test_a_run_cannot_become_shorter_than_it_is(everything: Recipe, tmp_path: Path) -> None:
    stopped(everything, tmp_path, (2, 0.67))
    with pytest.raises(BadInput, match=r"^the run is in epoch 2 of 1 \(train\.epochs\): give 2 or more"):
        train(everything.replace({"train.epochs": 1}), out=tmp_path, resume=True, override=True)


def test_what_is_only_said_of_a_recipe_may_change(everything: Recipe, tmp_path: Path) -> None:
    stopped(everything, tmp_path)
    said = everything.replace({"description": "the same", "deviations": ["set by the command: optim.lr 0.1"]})
    assert train(said, out=tmp_path, resume=True).protocol["deviations"] == ["set by the command: optim.lr 0.1"]


def test_other_kernels_are_named_and_refused_and_with_override_taken(
    everything: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped(everything, tmp_path)
    began = " ".join(("fp32", *load_state(folder / "state.pt")["kernels"]))
    monkeypatch.setattr("resfit.kernels.in_use", lambda dtype: ("faster",))
    with pytest.raises(BadInput, match=rf"computed with {began}, but this .* with fp32 faster \(.*--override"):
        train(everything, out=tmp_path, resume=True)
    record = train(everything, out=tmp_path, resume=True, override=True)
    assert record.events == (f"epoch 1, image 1,024: resumed with fp32 faster instead of {began}",)


def test_another_number_of_threads_is_noted(everything: Recipe, tmp_path: Path) -> None:
    stopped(everything, tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        record = train(everything, out=tmp_path, resume=True)
    finally:
        torch.set_num_threads(before)
    assert record.events == (
        f"epoch 1, image 1,024: resumed with {before + 1} threads instead of {thread_count(before)}",
    )


def test_a_recipe_file_edited_in_the_run_folder_is_a_changed_recipe(
    everything: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(everything, tmp_path)
    file = folder / "recipe.yaml"
    file.write_text(file.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    assert main(["train", "--resume", str(folder)]) == 2
    assert "(train.label_smoothing: 0.0 -> 0.1)" in capsys.readouterr().err
    assert main(["train", "--resume", str(folder), "--override", "--optim.lr", "0.05"]) == 0
    (event,) = read_record(folder).events
    assert event.endswith("optim.lr: 0.1 -> 0.05; train.label_smoothing: 0.0 -> 0.1")


def test_a_signal_ends_the_command_with_the_shells_status_and_says_how_to_go_on(
    everything: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from resfit.progress import Progress

    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(everything.to_dict()))
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "stepped", lambda self, epoch, done: signal.raise_signal(signal.SIGINT))
        assert main(["train", str(file), "--out", str(tmp_path / "runs")]) == 130
    folder = tmp_path / "runs" / FOLDER
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"interrupted (SIGINT): continue with resfit train --resume {folder}"
    assert main(last.partition("resfit ")[2].split()) == 0
    assert main(["train", "digits", "--override"]) == 2
    assert "use it with --resume" in capsys.readouterr().err


def test_the_record_has_the_command_that_began_the_run(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["resfit", "train", "tiny", "--epochs", "3"])
    with pytest.raises(RuntimeError):
        train(tiny, out=tmp_path, observer=Watcher((1, None), crash))
    monkeypatch.setattr("sys.argv", ["resfit", "train", "--resume", "runs/tiny/0"])
    assert train(tiny, out=tmp_path, resume=True).env["command"] == "resfit train tiny --epochs 3"


def test_resume_finds_the_data_folder_and_the_device_again(tmp_path: Path) -> None:
    from PIL import Image

    for label, level in (("dark", 40), ("light", 200)):
        for n in range(20):
            path = tmp_path / "images" / label / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (level + n, level, level - n)).save(path)
    recipe = resfit.get_recipe("folder", {"train.epochs": 1, "spec.stages": [{"blocks": 1, "channels": 8}]})
    runs = tmp_path / "runs"
    with pytest.raises(Interrupted):
        train(recipe, data_dir=tmp_path / "images", device="cpu", out=runs, observer=Watcher((1, 1.0), terminate))
    assert load_state(runs / "folder" / "0" / "state.pt")["device"] == "cpu"
    assert main(["train", "--resume", str(runs / "folder" / "0")]) == 0


def diverging(tiny: Recipe, factor: float) -> Recipe:
    fields = {"optim.lr": 1e30, "optim.momentum": 0.0, "schedule.name": "constant", "optim.weight_decay": 0.0}
    return tiny.replace({**fields, "train.epochs": 1, "train.rollbacks": 2, "train.rollback_factor": factor})


def test_a_run_that_diverges_goes_back_and_on_more_slowly(tiny: Recipe, tmp_path: Path) -> None:
    heard = listener()
    record = train(diverging(tiny, 1e-31), out=tmp_path, observer=heard)
    (event,) = record.events
    assert event.startswith("epoch 1, image ")
    assert event.endswith(": not finite; went back to epoch 1, with all learning rates multiplied by 1e-31")
    assert event in heard.lines
    assert len(record.curve) == 1
    assert record.curve[0].lr == pytest.approx(0.1)
    assert all(torch.isfinite(value).all() for value in resfit.load(tmp_path / FOLDER).state_dict().values())


def test_going_back_is_bounded_and_the_count_outlives_a_resume(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="not finite"):
        train(diverging(tiny, 0.9), out=tmp_path)
    state = load_state(tmp_path / FOLDER / "state.pt")
    assert (state["rollbacks"], len(state["events"])) == (2, 2)
    assert state["trainer"]["rate"] == pytest.approx(0.81)
    assert all(torch.isfinite(value).all() for value in state["trainer"]["net"].values())
    heard = listener()
    with pytest.raises(RunFailed, match="not finite"):
        train(diverging(tiny, 0.9), out=tmp_path, resume=True, observer=heard)
    assert not any("back to" in line for line in heard.lines)


def test_weights_that_are_not_finite_are_never_saved(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, real = [], runner.build
    monkeypatch.setattr(runner, "build", lambda *arguments: nets.append(real(*arguments)) or nets[-1])

    def spoil_and_save() -> None:  # long before the loss is read again
        next(nets[0].parameters()).data.view(-1)[0] = float("nan")
        terminate()

    with pytest.raises(RunFailed, match="a weight is not finite"):
        train(tiny.replace({"train.batch_size": 512}), out=tmp_path, observer=Watcher((1, 0.67), spoil_and_save))
    state = load_state(tmp_path / FOLDER / "state.pt")["trainer"]
    assert all(torch.isfinite(value).all() for value in state["net"].values())
    assert (state["epoch"], state["under_way"]) == (0, None)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:middle],
            "empty": b"",
            "bit-flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }[how]
    )


@pytest.mark.parametrize("how", ["truncated", "empty", "bit-flipped"])
def test_a_damaged_state_is_named_and_the_one_before_it_taken(
    everything: Recipe, undisturbed: dict[str, Any], tmp_path: Path, how: str
) -> None:
    folder = stopped(everything, tmp_path)
    damage(folder / "state.pt", how)
    damaged, heard = (folder / "state.pt").read_bytes(), listener()
    train(everything, out=tmp_path, resume=True, observer=heard)
    assert heard.lines[0] == (
        f"damaged checkpoint ({folder / 'state.pt'}): kept as state.damaged.pt; continuing from the previous one"
    )
    assert (folder / "state.damaged.pt").read_bytes() == damaged
    assert left_by(folder) == undisturbed


def test_two_damaged_states_are_refused(everything: Recipe, tmp_path: Path) -> None:
    folder = stopped(everything, tmp_path)
    damage(folder / "state.pt", "truncated")
    damage(folder / "state.previous.pt", "empty")
    with pytest.raises(BadInput, match=r"^damaged checkpoints \(.*state.pt and .*state.previous.pt\): start"):
        train(everything, out=tmp_path, resume=True)


def test_a_state_of_another_version_is_refused(everything: Recipe, tmp_path: Path) -> None:
    folder = stopped(everything, tmp_path)
    save_state(folder / "state.pt", {**load_state(folder / "state.pt"), "format": 1})
    with pytest.raises(BadInput, match="another version"):
        train(everything, out=tmp_path, resume=True)


@pytest.mark.parametrize("how", ["truncated", "empty", "bit-flipped"])
def test_a_damaged_record_is_named(tmp_path: Path, how: str, everything: Recipe) -> None:
    record = train(everything.replace({"train.epochs": 1}), out=tmp_path)
    file = tmp_path / FOLDER / "record.json"
    assert read_record(file) == record
    if how == "bit-flipped":
        text = file.read_text()
        place = text.index('"accuracy": 0.') + len('"accuracy": 0.')
        file.write_text(text[:place] + ("8" if text[place] != "8" else "9") + text[place + 1 :])
    else:
        damage(file, how)
    with pytest.raises(BadInput, match=r"^damaged record \(.*record.json\): "):
        read_record(file)
    assert isinstance(record, RunRecord)


HOLD = """
import sys
from pathlib import Path
from resfit.files import claimed

with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_works_in_a_run_folder(tiny: Recipe, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / FOLDER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        for resume in (False, True):
            with pytest.raises(BadInput, match=r"another process is using this run folder \("):
                train(tiny, out=tmp_path, device="cpu", resume=resume)
        assert not list((tmp_path / FOLDER).iterdir())
        other.kill()  # which lets go of it
    train(tiny, out=tmp_path, device="cpu")


def test_a_folder_removed_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def removed_at_once(path: Path, flags: int) -> int:
        held = opened(path, flags)
        path.rmdir()
        monkeypatch.undo()
        return held

    monkeypatch.setattr(os, "open", removed_at_once)
    with (
        claimed(tmp_path / "run"),
        pytest.raises(BadInput, match="another process is using"),
        claimed(tmp_path / "run"),
    ):
        pass


def test_a_refused_run_leaves_no_folder(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        train(tiny, out=tmp_path, device="cpu", resume=True)
    assert not (tmp_path / FOLDER).exists()
