"""Studies run: what is finished stays, what stopped goes on, what fails is told, and the test set keeps out of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from PIL import Image

from helpers.tiny_recipe import TINY
from resfit.cli import main
from resfit.cli.board import Board
from resfit.errors import BadInput, RunFailed
from resfit.executors.jobs import Job, Watcher, judged_by
from resfit.executors.local import InProcess, Processes, RunOptions, make_executor
from resfit.observer import Observer
from resfit.recipe import Recipe
from resfit.record import EpochPoint, RunRecord, read_record
from resfit.run import train
from resfit.study.execute import execute
from resfit.study.plan import Study
from resfit.studyrecord import StudyRecord, read_study


class Log(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.todo: list[str] = []
        self.epochs: list[tuple[str, int]] = []
        self.ended: dict[str, str] = {}

    def planned(self, jobs: Sequence[Job], done: Sequence[RunRecord], judged_by: str) -> None:
        self.todo = [str(job) for job in jobs]

    def epoch_ended(self, job: Job, point: EpochPoint) -> None:
        self.epochs.append((str(job), point.epoch))

    def finished(self, job: Job, record: RunRecord) -> None:
        self.ended[str(job)] = "finished"

    def failed(self, job: Job, error: str) -> None:
        self.ended[str(job)] = error


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "train": {**TINY["train"], "epochs": 2, "checkpoint_minutes": 1e-9}}))
    return Study(name="s", recipe=str(path), baseline="plain", points={"plain": {}, "slow": {"optim.lr": 0.001}})


def run(
    study: Study, out: Path, *, seeds: int = 1, recipes: dict[str, Recipe] | None = None
) -> tuple[StudyRecord, Log]:
    log = Log()
    executor = InProcess(RunOptions(out=out / study.name), "cpu")
    return execute(study, recipes or study.recipes(), executor, seeds=seeds, watcher=log), log


def test_a_study_leaves_run_folders_its_numbers_and_a_page(study: Study, tmp_path: Path) -> None:
    result, log = run(study, tmp_path, seeds=2)
    assert log.todo == ["plain, seed 0", "slow, seed 0", "plain, seed 1", "slow, seed 1"]
    assert log.epochs[:2] == [("plain, seed 0", 1), ("plain, seed 0", 2)]
    assert set(log.ended.values()) == {"finished"}
    records = [read_record(tmp_path / "s" / "plain" / str(seed)) for seed in (0, 1)]
    plain, slow = result.points
    assert plain.accuracy is not None and plain.accuracy.values == tuple(r.val.accuracy for r in records if r.val)
    assert plain.test is not None and plain.test.values == tuple(record.test.accuracy for record in records)
    assert [record.protocol["test_scored"] for record in records] == [1, 1]
    assert (result.judged_by, result.finished, result.wanted) == ("validation", 4, 4)
    assert slow.overrides == {"optim.lr": 0.001} and slow.against_baseline is not None
    assert read_study(tmp_path / "s") == result
    assert result.env == records[0].env
    page = (tmp_path / "s" / "report.html").read_text()
    assert "Judged by the validation accuracy" in page


def test_finished_runs_are_not_run_again(study: Study, tmp_path: Path) -> None:
    run(study, tmp_path)
    before = (tmp_path / "s" / "plain" / "0" / "record.json").read_bytes()
    result, log = run(study, tmp_path, seeds=2)
    assert log.todo == ["plain, seed 1", "slow, seed 1"]
    assert (tmp_path / "s" / "plain" / "0" / "record.json").read_bytes() == before
    assert result.finished == 4


def test_finished_runs_of_further_seeds_count(study: Study, tmp_path: Path) -> None:
    first, _ = run(study, tmp_path, seeds=2)
    second, log = run(study, tmp_path, seeds=1)
    assert log.todo == [] and second == first


def test_the_results_of_another_study_are_not_replaced(study: Study, tmp_path: Path) -> None:
    run(study, tmp_path)
    before = (tmp_path / "s" / "study.json").read_bytes()
    more = replace(study, points={**study.points, "fast": {"optim.lr": 0.2}})
    other = replace(study, points={"plain": {}, "fast": {"optim.lr": 0.2}})
    with pytest.raises(BadInput, match=r"another study already exists \(.*: slow\): give another --out"):
        run(other, tmp_path)
    assert (tmp_path / "s" / "study.json").read_bytes() == before
    assert len(run(more, tmp_path)[0].points) == 3


def test_what_a_run_says_is_printed_once(capsys: pytest.CaptureFixture[str], study: Study, tmp_path: Path) -> None:
    short = replace(study, points={"plain": {}, "slow": {"optim.lr": 0.001}})
    damaged = tmp_path / "s" / "plain" / "0"
    damaged.mkdir(parents=True)
    board = Board(["plain", "slow"])
    executor = InProcess(RunOptions(out=tmp_path / "s"), "cpu")
    recipes = {name: each.replace({"schedule.warmup": 9.0}) for name, each in short.recipes().items()}
    execute(short, recipes, executor, seeds=1, watcher=board)
    assert capsys.readouterr().err.count("warm-up") == 1


def test_an_unfinished_run_goes_on_from_its_state(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resfit.runner._SAVES_SHARE", 1e9)
    recipe = study.recipes()["plain"]

    class AfterOne(Observer):
        """Breaks off in the second epoch, after the first one's state was kept."""

        def stepped(self, epoch: int, done: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "s", observer=AfterOne())
    _, log = run(study, tmp_path)
    assert [epoch for job, epoch in log.epochs if job == "plain, seed 0"] == [2]
    assert len(read_record(tmp_path / "s" / "plain" / "0").curve) == 2


def test_an_interrupted_study_leaves_the_page_of_what_is_finished(study: Study, tmp_path: Path) -> None:
    class Breaking(Log):
        def epoch_ended(self, job: Job, point: EpochPoint) -> None:
            if str(job) == "slow, seed 0":
                raise KeyboardInterrupt

    executor = InProcess(RunOptions(out=tmp_path / "s"), "cpu")
    with pytest.raises(KeyboardInterrupt):
        execute(study, study.recipes(), executor, seeds=1, watcher=Breaking())
    left = json.loads((tmp_path / "s" / "study.json").read_text())
    assert [point["seeds"] for point in left["points"]] == [[0], []]
    assert "1 of 2 runs" in (tmp_path / "s" / "report.html").read_text()


def test_finished_runs_from_other_weights_are_refused(study: Study, tmp_path: Path) -> None:
    run(study, tmp_path)
    out = tmp_path / "s"
    executor = InProcess(RunOptions(out=out, init=str(out / "slow" / "0")), "cpu")
    with pytest.raises(BadInput, match=r"a run from other weights already exists \(.*plain/0\)"):
        execute(study, study.recipes(), executor, seeds=2)


def test_unfinished_runs_from_other_weights_are_refused(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Observer):
        def epoch_ended(self, point: EpochPoint) -> None:
            raise KeyboardInterrupt

    weights = train(study.recipes()["slow"], out=tmp_path / "given") and str(tmp_path / "given" / "slow" / "0")
    out = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        train(study.recipes()["plain"], out=out, init=weights, observer=Broken())
    with pytest.raises(BadInput, match=r"a run from other weights already exists \(.*plain/0\)"):
        run(study, tmp_path)
    executor = InProcess(RunOptions(out=out, init=weights), "cpu")
    assert execute(study, study.recipes(), executor, seeds=1).finished == 2


def test_what_no_run_can_use_is_one_line(study: Study, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^device not available, .* \(device nowhere\)"):
        make_executor(RunOptions(out=tmp_path), workers=2, device="nowhere")
    data = {"data.name": "cifar10", "spec.input": {"size": 32, "channels": 3}}
    executor = InProcess(RunOptions(out=tmp_path / "s", data_dir=tmp_path / "none", offline=True), "cpu")
    with pytest.raises(BadInput, match="CIFAR10 not found"), pytest.MonkeyPatch.context() as patch:
        patch.delenv("RESFIT_DATA_DIR", raising=False)
        execute(study, study.recipes(data), executor, seeds=3)
    assert not (tmp_path / "s").exists()


def test_a_failure_of_any_kind_is_told_by_its_name(study: Study, tmp_path: Path) -> None:
    class Failing(Observer):
        def epoch_ended(self, point: EpochPoint) -> None:
            raise KeyError("x")

    future = InProcess(RunOptions(out=tmp_path), "cpu").submit(study.recipes()["plain"], 0, Failing())
    assert str(future.exception()) == "KeyError: 'x'"


def test_a_process_that_cannot_begin_gives_its_device_back(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*given: object, **options: object) -> object:
        raise OSError("no more processes")

    monkeypatch.setattr("resfit.processes.start", start)
    log, options = Log(), RunOptions(out=tmp_path / "s")
    result = execute(study, study.recipes(), Processes(options, ["cpu"]), seeds=2, watcher=log)
    assert len(result.failed) == 4 and "no more processes" in log.ended["slow, seed 1"]


def test_none_begins_when_the_others_are_ended(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was beginning at that moment is asked to end."""
    ended: list[object] = []
    beginning = threading.Event()

    def start(*given: object, **options: object) -> object:
        beginning.set()
        time.sleep(0.3)
        given[5].close()  # type: ignore[attr-defined]
        return Mock(exitcode=130, join=lambda: time.sleep(0.3))

    monkeypatch.setattr("resfit.processes.start", start)
    monkeypatch.setattr("resfit.processes.interrupt", ended.extend)
    executor = Processes(RunOptions(out=tmp_path / "s"), ["cpu"])
    with executor:
        futures = [executor.submit(study.recipes()["plain"], seed, Observer()) for seed in range(2)]
        assert beginning.wait(60)
    assert len(ended) == 1
    assert isinstance(futures[0].exception(), CancelledError) and futures[1].cancelled()


def test_finished_runs_on_other_images_are_refused(tmp_path: Path) -> None:
    for place, level in (("a", 40), ("b", 90)):
        for label in ("dark", "light"):
            for n in range(6):
                path = tmp_path / place / label / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), level + 20 * (label == "light") + n).save(path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {"name": "folder", "val": 2}, "train": {"epochs": 1}}))
    study = Study(name="s", recipe=str(path), baseline="plain", points={"plain": {}})
    out = tmp_path / "s"

    def run_on(place: str) -> None:
        executor = InProcess(RunOptions(out=out, data_dir=tmp_path / place), "cpu")
        execute(study, study.recipes(), executor, seeds=1)

    run_on("a")
    run_on("a")
    with pytest.raises(BadInput, match="a run on other images already exists"):
        run_on("b")


def test_a_folders_own_validation_images_judge_a_study(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label in ("dark", "light"):
            for n in range(4):
                path = tmp_path / "images" / split / label / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 40 + 60 * (label == "light") + n + 7 * len(split)).save(path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {"name": "folder", "val": 0}, "train": {"epochs": 1}}))
    study = Study(name="s", recipe=str(path), baseline="plain", points={"plain": {}})
    executor = InProcess(RunOptions(out=tmp_path / "s", data_dir=tmp_path / "images"), "cpu")
    assert execute(study, study.recipes(), executor, seeds=1).judged_by == "validation"


def test_a_failed_run_is_told_and_the_others_go_on(study: Study, tmp_path: Path) -> None:
    recipes = study.recipes()
    recipes["plain"] = recipes["plain"].replace({"optim.lr": 1e30, "optim.momentum": 0.0})
    result, log = run(study, tmp_path, recipes=recipes)
    assert "not finite" in log.ended["plain, seed 0"] and log.ended["slow, seed 0"] == "finished"
    assert [(failed.point, failed.seed) for failed in result.failed] == [("plain", 0)]
    assert result.points[0].accuracy is None and result.points[1].accuracy is not None
    page = (tmp_path / "s" / "report.html").read_text()
    assert "Failed runs" in page and "not finite" in page


def test_an_interrupted_study_keeps_the_failures(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: RunOptions, recipe: Recipe, seed: int, **more: object) -> RunRecord:
        if recipe.name == "plain":
            raise RunFailed("it broke")
        raise KeyboardInterrupt

    monkeypatch.setattr(RunOptions, "train", begin)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path)
    assert [failed.error for failed in read_study(tmp_path / "s").failed] == ["it broke"]


def test_runs_that_another_process_finishes_count(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, out = RunOptions.train, tmp_path / "s"

    def begin(self: RunOptions, recipe: Recipe, seed: int, **more: Any) -> RunRecord:
        if recipe.name == "plain":  # the other process has the folder, and finishes while this one goes on
            train(study.recipes()["plain"], seed=0, out=out, device="cpu")
            raise BadInput("another process is using this run folder")
        train(study.recipes()["slow"], seed=0, out=out, device="cpu")  # finished since the beginning
        return real(self, recipe, seed, **more)

    monkeypatch.setattr(RunOptions, "train", begin)
    result, _ = run(study, tmp_path)
    assert (result.finished, result.wanted, result.failed) == (2, 2, ())


def test_a_page_tells_of_weights_chosen_on_the_test_set(study: Study, tmp_path: Path) -> None:
    points = {**study.points, "slow": {"evaluate.selection": "best-test"}}
    run(replace(study, points=points), tmp_path)
    page = " ".join((tmp_path / "s" / "report.html").read_text().split())
    assert "except that the weights of slow were chosen on it." in page
    assert "each run used it once" not in page


def test_runs_of_other_settings_are_refused_before_anything_runs(study: Study, tmp_path: Path) -> None:
    run(study, tmp_path)
    with pytest.raises(BadInput, match=r"a run with other settings already exists .*: train\)"):
        run(study, tmp_path, recipes=study.recipes(epochs=1), seeds=2)
    assert not (tmp_path / "s" / "plain" / "1").exists()


def test_runs_with_and_without_teachers_are_not_taken_for_each_other(study: Study, tmp_path: Path) -> None:
    """A recipe without a teacher has no section of it."""
    plain, taught = study.recipes(), study.recipes({"distill.teacher": "somewhere"})
    folder = tmp_path / "s" / "plain" / "0"
    folder.mkdir(parents=True)
    for then, now in ((plain, taught), (taught, plain)):
        (folder / "recipe.yaml").write_text(then["plain"].to_yaml())
        with pytest.raises(BadInput, match=r"a run with other settings already exists .*: distill\)"):
            run(study, tmp_path, recipes=now)


@pytest.mark.parametrize("other", [{"data.val": 100}, {"data.split_seed": 5}], ids=str)
def test_points_that_validate_on_different_images_are_judged_on_test(
    study: Study, tmp_path: Path, other: dict[str, object]
) -> None:
    options, plain = RunOptions(out=tmp_path), study.recipes()["plain"]
    jobs = [Job(recipe=plain, seed=0), Job(recipe=plain.replace({"name": "other", **other}), seed=0)]
    assert judged_by(jobs[:1], options) == "validation"
    assert judged_by(jobs, options) == "test"


def test_without_a_validation_split_the_page_says_that_the_test_set_judged(study: Study, tmp_path: Path) -> None:
    result, _ = run(study, tmp_path, recipes=study.recipes({"data.val": 0}))
    assert result.judged_by == "test"
    assert result.points[0].accuracy == result.points[0].test
    assert "Judged by test accuracy" in (tmp_path / "s" / "report.html").read_text()


@pytest.mark.slow
def test_several_processes_give_the_same_runs_and_one_failure_stays_alone(study: Study, tmp_path: Path) -> None:
    recipes = study.recipes({"train.epochs": 1})
    alone, _ = run(study, tmp_path / "alone", recipes=recipes)
    recipes["bad"] = recipes["plain"].replace({"name": "bad", "optim.lr": 1e30, "optim.momentum": 0.0})
    options, log = RunOptions(out=tmp_path / "s"), Log()
    bigger = Study(name="s", recipe=study.recipe, baseline="plain", points={**study.points, "bad": {}})
    result = execute(bigger, recipes, Processes(options, ["cpu", "cpu"]), seeds=1, watcher=log)
    assert "not finite" in log.ended["bad, seed 0"] and len(result.failed) == 1
    assert [point.accuracy for point in result.points[:2]] == [point.accuracy for point in alone.points]
    assert ("plain, seed 0", 1) in log.epochs


def test_the_command(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump({"recipe": study.recipe, "baseline": "plain", "points": dict(study.points)}))
    words = ["study", str(path), "--runs", "2", "--epochs", "1", "--fraction", "0.5", "--out", str(tmp_path)]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "4 runs to do, 0 already done; judged by validation accuracy" in told.err
    assert "slow, seed 1: " in told.err and "(4 of 4)" in told.err
    assert "4 of 4 runs are finished" in told.out
    record = read_record(tmp_path / "pair" / "slow" / "1")
    assert (record.epochs, record.config["data"]["fraction"]) == (1, 0.5)
    assert record.protocol["deviations"] == ["scaled: 1 instead of 2 epochs, 0.5 of the training images"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judged_by"] == "validation"
    assert main([*words, "--optim.lr", "1e30", "--out", str(tmp_path / "diverging")]) == 1
    for wrong in (["--runs", "0"], ["--epochs", "0"], ["--fraction", "2"], ["--workers", "0"]):
        assert main(["study", str(path), *wrong]) == 2


@pytest.mark.slow
def test_a_killed_study_goes_on(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    points = {"plain": {}, "slow": {"optim.lr": 0.001}}
    path.write_text(yaml.safe_dump({"recipe": study.recipe, "baseline": "plain", "points": points, "runs": 2}))
    command = [sys.executable, "-m", "resfit", "study", str(path), "--out", str(tmp_path), "--epochs", "40"]
    first = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    record = tmp_path / "long" / "plain" / "0" / "record.json"
    deadline = time.monotonic() + 240
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = record.read_bytes()
    time.sleep(5)  # the children end with their parent
    finished = len(list(tmp_path.glob("long/*/*/record.json")))
    time.sleep(5)
    assert len(list(tmp_path.glob("long/*/*/record.json"))) == finished < 4
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{4 - finished} runs to do, {finished} already done" in done.stderr
    assert "4 of 4 runs are finished" in done.stdout
    assert record.read_bytes() == before


@pytest.mark.parametrize(
    ("gpus", "workers", "devices"),
    [
        (2, None, ["cuda:0", "cuda:1"]),
        (2, 3, ["cuda:0", "cuda:1", "cuda:0"]),
        (0, 2, ["auto", "auto"]),
        (1, None, None),
        (0, None, None),
    ],
)
def test_there_is_a_process_for_every_gpu(tmp_path, monkeypatch, gpus, workers, devices):
    """One run at a time needs no process of its own."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    made = make_executor(RunOptions(out=tmp_path), workers=workers)
    if devices is None:
        assert isinstance(made, InProcess)
        assert made.device == ("cuda:0" if gpus else "auto")
        return
    with made:
        assert isinstance(made, Processes)
        assert [made.free.get_nowait() for _ in devices] == devices
        assert made.free.empty()
