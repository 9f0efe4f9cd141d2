"""The HTML page of a study: its points side by side, each compared with the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from resfit.files import write_atomic
from resfit.record import EpochPoint, RunRecord
from resfit.report.figures import Bar, Bars, Forest, LineChart, Plane, Series, forest, plane
from resfit.report.page import environment
from resfit.studyrecord import PointRecord, StudyRecord


def write_study(study: StudyRecord, runs: Sequence[RunRecord], path: Path) -> Path:
    """Write the page about `study` and its `runs` to `path`, atomically, and return the path."""
    return write_atomic(Path(path), render_study(study, runs))


def render_study(study: StudyRecord, runs: Sequence[RunRecord]) -> str:
    """Return the page as HTML. A point's curve is the mean over the `runs` whose recipe has the point's name."""
    template = environment().get_template("study.html.j2")
    tones = {point.name: tone for tone, point in enumerate(study.points)}
    finished = [point for point in study.points if point.accuracy]
    best = max(finished, key=lambda point: point.accuracy.mean if point.accuracy else 0.0, default=None)
    return str(
        template.render(
            title=f"Study {study.study}",
            study=study,
            tones=tones,
            best=best and best.name,
            verdict=verdict(study),
            bars=bars(study),
            curves=mean_curves(study, runs),
            prices=prices(study),
            differences=differences(study),
        )
    )


def bars(study: StudyRecord) -> Bars | None:
    """Return one bar per point with a finished run, with the baseline's mean as a line; None if there is none."""
    means = {point.name: point.accuracy.mean for point in study.points if point.accuracy}
    found = tuple(
        Bar(
            name=point.name,
            tone=tone,
            value=point.accuracy.mean,
            interval=point.accuracy.interval,
            values=point.accuracy.values,
        )
        for tone, point in enumerate(study.points)
        if point.accuracy
    )
    if not found:
        return None
    return Bars(
        title=f"{study.judged_by.capitalize()} accuracy, %", bars=found, percent=True, level=means.get(study.baseline)
    )


def mean_curves(study: StudyRecord, runs: Sequence[RunRecord]) -> list[LineChart]:
    """Return validation accuracy, if any, and training loss by epoch: one line per point, the mean of its runs."""
    charts = [
        LineChart(
            title=title,
            percent=field.endswith("accuracy"),
            from_zero=not field.endswith("accuracy"),
            faint=True,
            series=tuple(
                Series(name=point.name, tone=tone, points=points)
                for tone, point in enumerate(study.points)
                if (points := _mean_curve([run.curve for run in runs if run.recipe == point.name], field))
            ),
        )
        for title, field in (("Validation accuracy, %", "val_accuracy"), ("Training loss", "train_loss"))
    ]
    return [chart for chart in charts if chart.series]


def prices(study: StudyRecord) -> list[Plane]:
    """Return error against parameters and against time; empty if all points have the same number of parameters."""
    finished = [
        (point.name, tone, 100 * (1 - point.accuracy.mean), point.params, point.seconds)
        for tone, point in enumerate(study.points)
        if point.accuracy and point.seconds is not None
    ]
    if len({params for *_, params, _ in finished}) < 2:
        return []
    title = f"{study.judged_by.capitalize()} error, %, against"
    by_params = ((name, tone, params / 1e6, error) for name, tone, error, params, _ in finished)
    by_time = ((name, tone, seconds, error) for name, tone, error, _, seconds in finished)
    return [
        plane(f"{title} parameters", "million parameters", by_params),
        plane(f"{title} time", "seconds per run", by_time),
    ]


def _mean_curve(curves: Sequence[Sequence[EpochPoint]], field: str) -> tuple[tuple[float, float], ...]:
    """Return the mean of the curves at every epoch for which all of them have a value."""
    values = [{p.epoch: getattr(p, field) for p in curve if getattr(p, field) is not None} for curve in curves]
    shared = sorted(set.intersection(*map(set, values))) if values else []
    return tuple((float(epoch), statistics.mean(value[epoch] for value in values)) for epoch in shared)


def differences(study: StudyRecord) -> list[tuple[PointRecord, Forest | None]]:
    """Return each compared point with its difference from the baseline, on a common scale; None without an interval."""
    compared = [(point, point.against_baseline) for point in study.points if point.against_baseline]
    rows = forest([(against, bool(against.differs)) for _, against in compared])
    return [(point, row) for (point, _), row in zip(compared, rows, strict=True)]


def verdict(study: StudyRecord) -> list[str]:
    """Return the result of the comparisons in sentences."""
    compared = [(point.name, point.against_baseline) for point in study.points if point.against_baseline]
    groups = {
        "better than": [name for name, against in compared if against.differs and against.difference > 0],
        "worse than": [name for name, against in compared if against.differs and against.difference < 0],
        "not significantly different from": [name for name, against in compared if against.differs is False],
    }
    said = [
        f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {words} the baseline, {study.baseline}."
        for words, names in groups.items()
        if names
    ]
    if undecided := [name for name, against in compared if against.differs is None]:
        said.append(
            f"No verdict on {_listed(undecided)}: it needs two finished runs of each and of the baseline, with "
            "different results."
        )
    return said or [f"Nothing to compare yet: it needs finished runs of {study.baseline} and of another point."]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
