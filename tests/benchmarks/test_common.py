"""Measurements in their own processes, rounds and medians, and records that are never overwritten."""

from __future__ import annotations

import json
import os

import common
import pytest
from common import Recorder, in_process, machine, medians, read_records, take_turns

from resfit.errors import RunFailed


def answer(value: float) -> dict[str, float]:
    return {"value": value, "process": os.getpid()}


def failure() -> dict[str, float]:
    raise ValueError("no such kernel")


def test_a_measurement_runs_in_a_process_of_its_own_and_tells_its_peak_memory():
    found = in_process(answer, value=3.5)
    assert found["value"] == 3.5
    assert found["process"] != os.getpid()
    assert 1e6 < found["peak_host_bytes"] < 1e10


def test_a_measurement_that_fails_is_told_in_one_line():
    with pytest.raises(RunFailed, match=r"no such kernel \(test_common.py, failure\)"):
        in_process(failure)


def test_medians_are_of_each_number_over_the_rounds_that_have_it():
    rounds = [{"a": {"x": 1.0}}, {"a": {"x": 9.0}, "b": {"y": 2.0}}, {"a": {"x": 2.0}, "b": {"y": 4.0}}]
    assert medians(rounds) == {"a": {"x": 2.0}, "b": {"y": 3.0}}
    assert medians([{"a": {"x": 1.0}, "ratios": {}}]) == {"a": {"x": 1.0}, "ratios": {}}


def test_measurements_take_turns_and_ratios_are_taken_within_a_round(tmp_path):
    order: list[str] = []
    speeds = {"a": iter([10.0, 40.0, 90.0]), "b": iter([5.0, 10.0, 30.0])}

    def measure(name: str) -> dict[str, float]:
        order.append(name)
        return {"speed": next(speeds[name])}

    recorder = Recorder(benchmark="x", subject="y", settings={}, device="cpu", out=tmp_path)
    turns = {name: lambda name=name: measure(name) for name in speeds}
    take_turns(recorder, turns, lambda found: {"a to b": found["a"]["speed"] / found["b"]["speed"]}, 3)
    assert order == list("ababab")
    (record,) = read_records(tmp_path)
    assert [found["ratios"]["a to b"] for found in record["rounds"]] == [2.0, 4.0, 3.0]
    assert record["medians"] == {"a": {"speed": 40.0}, "b": {"speed": 10.0}, "ratios": {"a to b": 3.0}}


def test_a_record_says_what_was_measured_how_and_where(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/step.py", "/data/of/mine", "--seconds", "5"])
    recorder = Recorder(benchmark="step", subject="net", settings={"batch": 5}, device="cpu", out=tmp_path)
    recorder.add({"a": {"x": 1.0}})
    (record,) = read_records(tmp_path)
    assert (record["benchmark"], record["subject"], record["settings"]) == ("step", "net", {"batch": 5})
    assert record["env"]["command"] == "step.py mine --seconds 5"
    assert {"cpu", "cpu_features", "torch", "threads", "commit", "gpu"} <= set(record["env"])


def test_a_record_never_takes_another_ones_place(tmp_path):
    paths = []
    for value in (1.0, 2.0):
        recorder = Recorder(benchmark="step", subject="net", settings={}, device="cpu", out=tmp_path)
        recorder.add({"a": {"x": value}})
        recorder.add({"a": {"x": value}})
        paths.append(recorder.path)
    assert [json.loads(path.read_text())["medians"]["a"]["x"] for path in paths] == [1.0, 2.0]
    assert len(list(tmp_path.iterdir())) == 2


def test_rounds_can_be_written_before_they_are_whole(tmp_path):
    recorder = Recorder(benchmark="x", subject="y", settings={}, device="cpu", out=tmp_path)
    recorder.add({"a": {"x": 1.0}})
    recorder.put(1, [{"a": {"x": 2.0}}, {"a": {"x": 3.0}}])
    recorder.put(1, [{"a": {"x": 2.0}, "b": {"y": 4.0}}, {"a": {"x": 3.0}}])
    (record,) = read_records(tmp_path)
    assert record["rounds"] == [{"a": {"x": 1.0}}, {"a": {"x": 2.0}, "b": {"y": 4.0}}, {"a": {"x": 3.0}}]


@pytest.mark.parametrize(
    ("gpu", "features", "name"),
    [
        ("NVIDIA H100 80GB HBM3", ["amx_bf16"], "h100-80gb-hbm3"),
        (None, ["avx2", "avx512f", "avx512_bf16", "amx_bf16"], "amx"),
        (None, ["avx2", "avx512f", "avx512_bf16"], "avx512-bf16"),
        (None, ["avx2"], "avx2"),
        (None, [], "cpu"),
    ],
)
def test_a_file_is_named_after_the_processor_that_counts(gpu, features, name):
    assert machine({"gpu": gpu, "cpu_features": features}) == name


def test_the_committed_records_have_the_format():
    for record in read_records(common.RECORDS):
        assert set(record) == {"benchmark", "subject", "settings", "medians", "rounds", "env"}
        assert record["medians"] == medians(record["rounds"])
        assert "/" not in record["env"]["command"]
