"""Records come back as they were written, in order, and their statistics are those of scipy."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resfit.errors import BadInput
from resfit.record import (
    ClassScore,
    GivenModel,
    Metrics,
    RunRecord,
    compare,
    find_records,
    group_runs,
    read_record,
    summarize,
)

METRICS = Metrics(
    accuracy=0.9,
    loss=0.3,
    ece=0.02,
    per_class=(ClassScore(name="cat", precision=0.9, recall=0.9, f1=0.9, support=10),),
    confusion=((9, 1), (0, 10)),
    reliability=(),
)
RECORD = RunRecord(
    resfit="0.1.0",
    recipe="tiny",
    config={"train": {"epochs": 1}},
    spec={},
    params=10,
    macs=100,
    budget=1000,
    layers=(),
    seed=0,
    epochs=1,
    device="cpu",
    precision="fp32",
    env={},
    data={},
    protocol={},
    seconds_to_result=1.5,
    images_per_second=100.0,
    test=METRICS,
    curve=(),
)


def written(folder: Path, **changes: object) -> RunRecord:
    record = dataclasses.replace(RECORD, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record.to_dict()))
    return record


def test_a_record_comes_back_from_its_file_and_its_folder(tmp_path):
    record = written(tmp_path)
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / "record.json") == record


def test_the_headline_is_the_augmented_accuracy_where_there_is_one():
    assert RECORD.accuracy == 0.9
    assert dataclasses.replace(RECORD, test=dataclasses.replace(METRICS, accuracy_tta=0.92)).accuracy == 0.92


def test_a_record_from_before_saving_was_timed_is_read_as_it_was_written(tmp_path):
    assert "seconds_saving" not in written(tmp_path / "before").to_dict()
    assert read_record(tmp_path / "before").seconds_saving is None
    assert written(tmp_path / "since", seconds_saving=0.5) == read_record(tmp_path / "since")


WHOLE = json.dumps(RECORD.to_dict())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "damaged record"),
        (WHOLE[: len(WHOLE) // 2].encode(), "damaged record"),
        (b"\xff\xfe", "damaged record"),
        (b"[" * 100_000, "damaged record"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "damaged record"),
        (b"[]", "not a mapping"),
        (WHOLE.replace('"seed"', '"sede"').encode(), r"unknown field \(sede\): did you mean seed\?"),
        (WHOLE.replace('"loss": 0.3', '"loss": "low"').encode(), r"'low' is not a number \(test\.loss\)"),
    ],
    ids=["empty", "truncated", "binary", "deep", "huge number", "list", "unknown field", "wrong kind"],
)
def test_a_damaged_record_is_named_in_one_line(tmp_path, content, problem):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(BadInput, match=problem) as caught:
        read_record(tmp_path)
    assert "record.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "record.json").write_text(WHOLE)

    def refuse(path: Path, *words: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(BadInput, match=r"cannot read the record .*permission denied\): check the path"):
        read_record(tmp_path)


@pytest.mark.parametrize("read", [read_record, lambda path: find_records([path])])
def test_a_folder_without_a_finished_run_is_said_to_be_one(tmp_path, read):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadInput, match="no finished run"):
            read(path)


def test_records_are_found_in_the_order_of_their_seeds(tmp_path):
    for seed in (10, 2, 0):
        written(tmp_path / "tiny" / str(seed), seed=seed)
    written(tmp_path / "a" / "1", recipe="a", seed=1)
    assert [(r.recipe, r.seed) for r in find_records([tmp_path])] == [("a", 1), ("tiny", 0), ("tiny", 2), ("tiny", 10)]
    assert [r.seed for r in find_records([tmp_path / "tiny" / "10", tmp_path / "tiny" / "2"])] == [10, 2]
    (tmp_path / "kept").mkdir()
    for seed in (10, 2):
        (tmp_path / "tiny" / str(seed) / "record.json").rename(tmp_path / "kept" / f"{seed}.json")
    assert [r.seed for r in find_records([tmp_path / "kept"])] == [2, 10]


def test_runs_of_one_recipe_are_one_group_and_a_changed_recipe_is_another():
    changed = {"train": {"epochs": 2}}
    runs = [
        dataclasses.replace(RECORD, seed=0),
        dataclasses.replace(RECORD, seed=1, config=changed),
        dataclasses.replace(RECORD, seed=2),
        dataclasses.replace(RECORD, seed=3, config=changed),
        dataclasses.replace(RECORD, seed=4, recipe="other"),
    ]
    seeds = {name: [run.seed for run in group] for name, group in group_runs(runs).items()}
    assert seeds == {"tiny": [0, 2], "tiny (2)": [1, 3], "other": [4]}


def test_what_is_said_of_a_recipe_does_not_tell_its_runs_apart():
    said = {**RECORD.config, "description": "measured by now", "deviations": ["none"]}
    (group,) = group_runs([RECORD, dataclasses.replace(RECORD, seed=1, config=said)]).values()
    assert len(group) == 2


ACCURACIES = st.lists(st.floats(0.8, 1.0).map(lambda x: round(x, 4)), min_size=2, max_size=12)
UNEQUAL = ACCURACIES.filter(lambda values: len(set(values)) > 1)


@settings(max_examples=50, deadline=None)
@given(UNEQUAL)
def test_a_summary_is_scipys(values):
    summary = summarize(values)
    expected = stats.t.interval(0.95, len(values) - 1, loc=summary.mean, scale=stats.sem(values))
    assert summary.mean == pytest.approx(sum(values) / len(values))
    assert summary.std == pytest.approx(stats.tstd(values))
    assert summary.interval == pytest.approx(expected)
    assert (summary.n, summary.values) == (len(values), tuple(values))


@settings(max_examples=50, deadline=None)
@given(UNEQUAL, UNEQUAL)
def test_a_comparison_is_welchs_test(a, b):
    comparison = compare(a, b)
    expected = stats.ttest_ind(b, a, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert comparison.p_value == pytest.approx(expected.pvalue)
    assert comparison.difference == pytest.approx(sum(b) / len(b) - sum(a) / len(a))
    assert comparison.interval == pytest.approx((interval.low, interval.high))


def test_a_single_value_has_no_deviation_and_supports_no_test():
    summary = summarize([0.9])
    assert (summary.n, summary.mean, summary.std, summary.interval) == (1, 0.9, None, None)
    comparison = compare([0.9], [0.95, 0.96])
    assert comparison.difference == pytest.approx(0.055)
    assert comparison.interval is comparison.p_value is None


@settings(max_examples=50, deadline=None)
@given(st.floats(0.0, 1.0), st.integers(2, 12))
def test_equal_values_have_no_deviation_at_all(value, n):
    summary = summarize([value] * n)
    assert summary.std == 0.0
    assert summary.mean == value
    assert summary.interval == (value, value)


def test_without_spread_nothing_is_certain():
    assert compare([0.9, 0.9], [0.9, 0.9]).p_value == 1.0
    apart = compare([0.1, 0.1, 0.1], [0.7, 0.7, 0.7])
    assert apart.interval is apart.p_value is None
    assert math.isclose(apart.difference, 0.6)


def test_runs_of_other_teachers_are_no_runs_of_one_recipe():
    by = [dataclasses.replace(RECORD, teachers=(GivenModel(path="t", sha256=sha, params=1),)) for sha in ("aa", "bb")]
    assert by[0].identity != by[1].identity
    assert by[0].identity == dataclasses.replace(by[0], seed=7).identity
