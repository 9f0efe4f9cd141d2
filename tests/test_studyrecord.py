"""What a study's numbers say: each point against the baseline, corrected for how many are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit.errors import BadInput
from resfit.record import compare, summarize
from resfit.studyrecord import PointRecord, against_baseline, holm, read_study


def point(name: str, *values: float) -> PointRecord:
    accuracy = summarize(values) if values else None
    return PointRecord(name=name, overrides={}, params=1, seeds=tuple(range(len(values))), accuracy=accuracy)


def test_holm_by_hand() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_correction_never_helps_and_keeps_the_order(p_values: list[float]) -> None:
    named = {str(n): p for n, p in enumerate(p_values)}
    corrected = holm(named)
    assert all(named[name] <= corrected[name] <= 1 for name in named)
    order = sorted(named, key=lambda name: named[name])
    assert [corrected[name] for name in order] == sorted(corrected.values())


def test_points_are_compared_with_the_baseline_and_corrected() -> None:
    points = against_baseline(
        [point("base", 0.90, 0.91, 0.92), point("up", 0.95, 0.96, 0.97), point("near", 0.91, 0.90, 0.93)], "base"
    )
    base, up, near = points
    assert base.against_baseline is None and up.against_baseline is not None and near.against_baseline is not None
    alone = compare((0.90, 0.91, 0.92), (0.95, 0.96, 0.97))
    assert up.against_baseline.difference == pytest.approx(0.05)
    assert (up.against_baseline.p_value, up.against_baseline.interval) == (alone.p_value, alone.interval)
    assert alone.p_value is not None and up.against_baseline.p_corrected == pytest.approx(2 * alone.p_value)
    assert (up.against_baseline.differs, near.against_baseline.differs) == (True, False)


def test_what_only_looks_clear_alone_is_not_told_apart_among_many() -> None:
    base, shifted = (0.900, 0.902, 0.904), (0.905, 0.907, 0.909)
    assert (compare(base, shifted).p_value or 1) < 0.05
    many = [point("base", *base), point("shifted", *shifted), *(point(str(n), *base) for n in range(4))]
    found = {p.name: p.against_baseline for p in against_baseline(many, "base")}
    assert found["shifted"] is not None and found["shifted"].differs is False


def test_single_runs_have_a_difference_and_no_verdict() -> None:
    _, single, missing = against_baseline([point("base", 0.9, 0.91), point("single", 0.95), point("none")], "base")
    assert single.against_baseline is not None and single.against_baseline.differs is None
    assert single.against_baseline.p_value is None and missing.against_baseline is None
    assert against_baseline([point("base"), point("a", 0.9, 0.8)], "base")[1].against_baseline is None


def test_a_missing_or_damaged_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no study"):
        read_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(BadInput, match="damaged study"):
        read_study(tmp_path)
