"""TensorBoard and MLflow watch a run; the run is the same to the bit without them."""

from __future__ import annotations

import builtins
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import resfit
from helpers.tiny_recipe import TINY
from resfit import cli, logs, runner
from resfit.errors import BadInput
from resfit.logs import make_loggers
from resfit.observer import Observer, Observers
from resfit.recipe import Recipe
from resfit.record import RunRecord
from resfit.run import train


def lasting(record: RunRecord) -> dict[str, Any]:
    """A record without what two runs of one recipe never share: times and surroundings."""
    plain = record.to_dict()
    for key in ("seconds_to_result", "seconds_saving", "images_per_second", "env"):
        plain.pop(key)
    plain["curve"] = [{**point, "seconds": 0} for point in plain["curve"]]
    return plain


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:
    out = tmp_path_factory.mktemp("plain")
    return train(Recipe.from_dict(TINY), out=out), out / "tiny" / "0"


def assert_same_run(a: tuple[RunRecord, Path], b: tuple[RunRecord, Path]) -> None:
    assert lasting(a[0]) == lasting(b[0])
    first, second = (resfit.load(folder).state_dict() for _, folder in (a, b))
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_tensorboard_gets_the_curve_and_the_result_and_the_run_is_the_same(tiny, tmp_path, plain_run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = train(tiny, out=tmp_path, observer=Observers(make_loggers(["tensorboard"])))
    folder = tmp_path / "tiny" / "0"
    assert_same_run((record, folder), plain_run)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name, field in (("train/loss", "train_loss"), ("val/accuracy", "val_accuracy"), ("lr", "lr")):
        seen = [(scalar.step, scalar.value) for scalar in events.Scalars(name)]
        wanted = [(point.epoch, getattr(point, field)) for point in record.curve]
        assert seen == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted]
    (result,) = events.Scalars("result/test_accuracy")
    assert result.value == pytest.approx(record.test.accuracy, rel=1e-6)


@pytest.mark.slow  # its imports and its database take half a minute
def test_mlflow_gets_the_recipe_the_curve_and_the_result_and_the_run_is_the_same(tiny, tmp_path, plain_run):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    record = train(tiny, out=tmp_path, observer=Observers(make_loggers(["mlflow"])))
    folder = tmp_path / "tiny" / "0"
    assert_same_run((record, folder), plain_run)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("resfit").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "3"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(point.epoch, point.train_loss) for point in record.curve]
    assert run.data.metrics["result/test_accuracy"] == record.test.accuracy


@pytest.mark.parametrize("wanted", ["wandb", "", "tensorboard=there"])
def test_an_unknown_log_is_refused(wanted):
    with pytest.raises(BadInput, match="no such log"):
        make_loggers([wanted])


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_one_line_before_any_training(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    words = ["train", "digits", "--train.epochs", "1", "--out", str(tmp_path), "--log", name]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error == f"error: {name} is not installed (--log {name}): pip install 'resfit[log]'\n"
    assert not list(tmp_path.iterdir())


def test_a_log_that_fails_under_way_ends_alone(tiny, tmp_path, plain_run, capsys):
    class Failing(logs._Log):
        name = "failing"

        def write(self, values, step):
            if step > 1:
                raise OSError("the server is gone")

        def close(self):
            raise AssertionError("it ended already")

    record = train(tiny, out=tmp_path, observer=Observers([Failing()]))
    assert_same_run((record, tmp_path / "tiny" / "0"), plain_run)
    assert capsys.readouterr().err == "failing: logging stopped: the server is gone\n"


def test_all_observers_hear_everything_in_order(tiny, tmp_path):
    heard: list[tuple[str, str]] = []

    def listener(name: str) -> Observer:
        methods = {
            method: lambda self, *args, method=method: heard.append((name, method))
            for method in ("started", "stepped", "epoch_ended", "finished", "message")
        }
        return builtins.type("Listener", (Observer,), methods)()

    train(tiny.replace({"train.epochs": 1}), out=tmp_path, observer=Observers([listener("a"), listener("b")]))
    told = {method for _, method in heard}
    assert {"started", "stepped", "epoch_ended", "finished"} <= told
    assert [entry for entry in heard if entry[0] == "a"] == [("a", method) for _, method in heard[1::2]]
    assert [name for name, _ in heard] == ["a", "b"] * (len(heard) // 2)


def test_a_log_that_is_slow_to_open_is_no_part_of_the_runs_time(tiny, tmp_path, monkeypatch):
    late = 0.0

    class Slow(Observer):
        def started(self, *args: object) -> None:
            nonlocal late
            late = 1000.0

    monkeypatch.setattr(runner.time, "perf_counter", lambda: time.monotonic() + late)
    record = train(tiny.replace({"train.epochs": 1}), out=tmp_path, observer=Slow())
    assert 0 < record.seconds_to_result < 900
