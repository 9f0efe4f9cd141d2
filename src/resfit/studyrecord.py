"""StudyRecord: the results of a study, as stored in study.json, and the statistics that make them from run records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from resfit.fields import Plain, from_json, json_file
from resfit.record import Comparison, RunRecord, Summary, compare, summarize

JudgedBy = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Against:
    """Comparison of a point with the baseline: difference of means with its own 95 % interval, by Welch's t-test.

    `p_value` is of this comparison alone; `p_corrected` is corrected for all comparisons of the study (Holm 1979), and
    `differs` tells whether it is below 0.05. All but the difference are None if either side has a single run. The
    interval is also None if the runs of each side are equal, and so are the p-values unless the difference is 0.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    p_corrected: float | None = None

    @property
    def differs(self) -> bool | None:
        """Whether the two differ according to the corrected p-value; None if it is unknown."""
        return None if self.p_corrected is None else self.p_corrected < 0.05


@dataclass(frozen=True, kw_only=True)
class PointRecord:
    """One setting of a study: what it overrides, its runs by seed, and their statistics. Accuracies are fractions.

    `accuracy` is what the study compares, without test-time augmentation; `test` is the test accuracy of the same runs.
    Both are None until a run is finished.
    """

    name: str
    overrides: dict[str, Any]
    params: int
    seeds: tuple[int, ...] = ()
    accuracy: Summary | None = None
    test: Summary | None = None
    seconds: float | None = None
    peeked: bool = False
    against_baseline: Against | None = None


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A failed run, with its error in one line."""

    point: str
    seed: int
    error: str


@dataclass(frozen=True, kw_only=True)
class StudyRecord(Plain):
    """The results of a study. `epochs` and `fraction` (of the training images) are those of the baseline.

    `wanted` is the number of runs in the whole study, finished or not. `env` is the environment of the first run:
    processor, versions, commit, command.
    """

    resfit: str
    study: str
    description: str
    recipe: str
    baseline: str
    judged_by: JudgedBy
    epochs: int
    fraction: float
    wanted: int
    points: tuple[PointRecord, ...]
    failed: tuple[FailedRun, ...] = ()
    env: dict[str, Any] = field(default_factory=dict)

    @property
    def comparisons(self) -> int:
        """The number of tests against the baseline, for which the p-values are corrected."""
        return sum(p.against_baseline is not None and p.against_baseline.p_value is not None for p in self.points)

    @property
    def finished(self) -> int:
        """The number of finished runs."""
        return sum(len(point.seeds) for point in self.points)


def read_study(path: str | Path) -> StudyRecord:
    """Read the study at `path`: a study.json, or the folder that contains one."""
    return from_json(StudyRecord, json_file(path, "study.json", "study"), "study")


def judged_accuracy(record: RunRecord, judged_by: JudgedBy) -> float:
    """Return what a study compares: the selected weights' validation or test accuracy, without TTA."""
    if judged_by == "test":
        return record.test.accuracy
    assert record.val is not None
    return record.val.accuracy


def summarize_point(point: PointRecord, runs: Sequence[RunRecord], judged_by: JudgedBy) -> PointRecord:
    """Return `point` with the statistics of its finished runs filled in."""
    if not runs:
        return point
    return replace(
        point,
        seeds=tuple(run.seed for run in runs),
        accuracy=summarize([judged_accuracy(run, judged_by) for run in runs]),
        test=summarize([run.test.accuracy for run in runs]),
        seconds=summarize([run.seconds_to_result for run in runs]).mean,
        peeked=any(run.peeked for run in runs),
    )


def against_baseline(points: Sequence[PointRecord], baseline: str) -> tuple[PointRecord, ...]:
    """Return the points, each compared with the one called `baseline`; p-values are corrected over all of them."""
    accuracies = {point.name: point.accuracy for point in points}
    base = accuracies[baseline]
    found = {
        name: _against(compare(base.values, accuracy.values))
        for name, accuracy in accuracies.items()
        if base and accuracy and name != baseline
    }
    corrected = holm({name: against.p_value for name, against in found.items() if against.p_value is not None})
    found = {name: replace(against, p_corrected=corrected.get(name)) for name, against in found.items()}
    return tuple(replace(point, against_baseline=found.get(point.name)) for point in points)


def _against(comparison: Comparison) -> Against:
    return Against(difference=comparison.difference, interval=comparison.interval, p_value=comparison.p_value)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for multiple comparisons, under any dependence between them (Holm 1979)."""
    corrected, worst = {}, 0.0
    for rank, (name, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_value))
        corrected[name] = worst
    return corrected
