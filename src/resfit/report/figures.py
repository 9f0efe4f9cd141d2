"""Compute figures from records: small plain objects that hold what a drawing shows. Nothing is drawn here.

Accuracies, shares and heats are fractions. A heat is the strength of a cell's colour, from 0 to 1.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from resfit.record import Comparison, EpochPoint, LayerRow, Metrics, Robustness, RunRecord, Sample
from resfit.report.groups import DataGroup, RecipeGroup
from resfit.studyrecord import Against

_TRAIN, _VAL, _TEST, _RATE = 1, 0, 4, 3  # tones of the palette
_MANY_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart: points (x, y), ordered by x."""

    name: str
    tone: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Lines over epochs, or over the quantity that `x` names (in the singular).

    `level` is a reference line: name, y and tone. `percent`: y is a fraction.
    """

    title: str
    series: tuple[Series, ...]
    x: str = "epoch"
    percent: bool = False
    from_zero: bool = False
    faint: bool = False
    level: tuple[str, float, int] | None = None


def curves(record: RunRecord) -> list[LineChart]:
    """Return loss, accuracy and learning rate by epoch for one run; lines without values are omitted."""
    curve = record.curve
    loss = [_series("train", _TRAIN, curve, "train_loss"), _series("validation", _VAL, curve, "val_loss")]
    accuracy = [
        _series("train", _TRAIN, curve, "train_accuracy"),
        _series("validation", _VAL, curve, "val_accuracy"),
        _series("test", _TEST, curve, "test_accuracy"),
    ]
    level = None if accuracy[2].points else ("final test", record.test.accuracy, _TEST)
    charts = [
        LineChart(title="Loss", series=_present(loss), from_zero=True),
        LineChart(title="Accuracy, %", series=_present(accuracy), percent=True, level=level),
        LineChart(
            title="Learning rate", series=_present([_series("learning rate", _RATE, curve, "lr")]), from_zero=True
        ),
    ]
    return [chart for chart in charts if chart.series]


def overlay(group: DataGroup) -> list[LineChart]:
    """Return the curves of all runs overlaid, one colour per recipe; validation if all runs have it, else training."""
    part = "val" if all(any(p.val_loss is not None for p in run.curve) for run in group.runs) else "train"
    name = {"val": "Validation", "train": "Training"}[part]
    lines = {
        field: _present(
            _series(f"{recipe.label}, seed {run.seed}", recipe.tone, run.curve, field)
            for recipe in group.recipes
            for run in recipe.runs
        )
        for field in (f"{part}_accuracy", f"{part}_loss")
    }
    charts = [
        LineChart(title=f"{name} accuracy, %", series=lines[f"{part}_accuracy"], percent=True, faint=True),
        LineChart(title=f"{name} loss", series=lines[f"{part}_loss"], from_zero=True, faint=True),
    ]
    return [chart for chart in charts if chart.series]


def _series(name: str, tone: int, curve: Sequence[EpochPoint], field: str) -> Series:
    values = ((float(point.epoch), getattr(point, field)) for point in curve)
    points = tuple((x, float(y)) for x, y in values if y is not None and math.isfinite(y))
    return Series(name=name, tone=tone, points=points)


def _present(series: Iterable[Series]) -> tuple[Series, ...]:
    return tuple(line for line in series if line.points)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A recipe in a plot of accuracy against parameters; the interval is None for a single run."""

    name: str
    tone: int
    params: int
    accuracy: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Accuracy against parameters. `budget` is None if it differs between runs, or is far from all marks."""

    title: str
    marks: tuple[Mark, ...]
    budget: int | None


def scatter(group: DataGroup) -> Scatter | None:
    """Return one mark per recipe; None for a single recipe."""
    if len(group.recipes) < 2:
        return None
    budgets, most = {run.budget for run in group.runs}, max(recipe.params for recipe in group.recipes)
    budget = budgets.pop() if len(budgets) == 1 else None
    return Scatter(
        title="Test accuracy with TTA, %" if group.tta else "Test accuracy, %",
        marks=tuple(_mark(group, recipe) for recipe in group.recipes),
        budget=budget if budget and budget <= 2 * most else None,
    )


def _mark(group: DataGroup, recipe: RecipeGroup) -> Mark:
    ranked = group.ranked_by(recipe)
    return Mark(
        name=recipe.label,
        tone=recipe.tone,
        params=recipe.params,
        accuracy=ranked.mean,
        interval=ranked.interval,
        n=ranked.n,
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """A network in a plot of two costs; `front`: it is on the Pareto front."""

    name: str
    tone: int
    x: float
    y: float
    front: bool


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Networks plotted by two costs; less is better."""

    title: str
    x_label: str
    places: tuple[Place, ...]


def plane(title: str, x_label: str, networks: Iterable[tuple[str, int, float, float]]) -> Plane:
    """Return the plot of networks given as (name, tone, x, y)."""
    found = list(networks)

    def beaten(x: float, y: float) -> bool:
        return any(a <= x and b <= y and (a, b) != (x, y) for _, _, a, b in found)

    places = (Place(name=name, tone=tone, x=x, y=y, front=not beaten(x, y)) for name, tone, x, y in found)
    return Plane(title=title, x_label=x_label, places=tuple(places))


@dataclass(frozen=True, kw_only=True)
class Forest:
    """A difference with its interval, on a scale from -reach to reach that all rows of a table share."""

    difference: float
    interval: tuple[float, float]
    reach: float
    decided: bool


def forest(rows: Sequence[tuple[Comparison | Against, bool]]) -> list[Forest | None]:
    """Return a figure for each comparison and whether it is decided, on one scale; None for one without an interval."""
    spans = [comparison.interval for comparison, _ in rows if comparison.interval]
    reach = max((abs(end) for span in spans for end in span), default=0.0) or 1.0
    return [
        Forest(difference=found.difference, interval=found.interval, reach=reach, decided=decided)
        if found.interval
        else None
        for found, decided in rows
    ]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: a value, its interval, and the individual values that it is the mean of, if there are several."""

    name: str
    tone: int
    value: float
    interval: tuple[float, float] | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars on one scale. `level` is a reference value; `percent`: values are fractions."""

    title: str
    bars: tuple[Bar, ...]
    percent: bool = False
    from_zero: bool = False
    level: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrialMark:
    """One trial of a search; `complete`: it was not pruned."""

    number: int
    accuracy: float
    complete: bool


@dataclass(frozen=True, kw_only=True)
class History:
    """The trials of a search in order, and the best accuracy so far as (trial, accuracy)."""

    title: str
    marks: tuple[TrialMark, ...]
    best: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The number of images of one class predicted as one class, and their share of the true class."""

    count: int
    share: float
    heat: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A confusion matrix: rows are true classes, columns predictions. `numbers`: small enough to print the numbers."""

    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: bool


def confusion(metrics: Metrics) -> Confusion | None:
    """Return shares of each true class. Errors have their own scale, or they would look empty beside the diagonal."""
    names = tuple(score.name for score in metrics.per_class)
    if not names or len(metrics.confusion) != len(names):
        return None
    shares = [[count / max(sum(row), 1) for count in row] for row in metrics.confusion]
    worst = max((s for i, row in enumerate(shares) for j, s in enumerate(row) if i != j), default=0.0) or 1.0
    rows = tuple(
        tuple(
            Cell(count=metrics.confusion[i][j], share=s, heat=s if i == j else (s / worst) ** 0.7, right=i == j)
            for j, s in enumerate(row)
        )
        for i, row in enumerate(shares)
    )
    return Confusion(names=names, rows=rows, numbers=len(names) <= _MANY_CLASSES)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Images of class `label` predicted as `prediction`; `share` is relative to all images of `label`."""

    label: str
    prediction: str
    count: int
    share: float


def mistakes(metrics: Metrics, most: int = 10) -> list[Mistake]:
    """Return the most frequent confusions of classes, by share."""
    table = confusion(metrics)
    if table is None:
        return []
    found = [
        Mistake(label=table.names[i], prediction=table.names[j], count=cell.count, share=cell.share)
        for i, row in enumerate(table.rows)
        for j, cell in enumerate(row)
        if i != j and cell.count
    ]
    return sorted(found, key=lambda mistake: (-mistake.share, -mistake.count))[:most]


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """A class's precision, recall and F1, each with its heat, and its number of images."""

    name: str
    scores: tuple[tuple[float, float], ...]
    support: int


def class_scores(metrics: Metrics) -> list[ScoreRow]:
    """Return the classes in order, or the hardest first if there are many. The lowest score has heat 0."""
    values = [score for c in metrics.per_class for score in (c.precision, c.recall, c.f1)]
    low = min(values, default=0.0)
    span = max(values, default=1.0) - low or 1.0
    classes = metrics.per_class
    if len(classes) > _MANY_CLASSES:
        classes = tuple(sorted(classes, key=lambda c: c.f1))
    return [
        ScoreRow(
            name=c.name,
            scores=tuple((score, (score - low) / span) for score in (c.precision, c.recall, c.f1)),
            support=c.support,
        )
        for c in classes
    ]


def macro_average(metrics: Metrics) -> tuple[float, ...]:
    """Return precision, recall and F1, averaged over the classes."""
    n = max(len(metrics.per_class), 1)
    return tuple(sum(getattr(c, name) for c in metrics.per_class) / n for name in ("precision", "recall", "f1"))


@dataclass(frozen=True, kw_only=True)
class Trust:
    """One bin of the reliability diagram, with its share of all images."""

    confidence: float
    accuracy: float
    share: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Accuracy against confidence. `gap` is mean confidence minus accuracy: above 0, the network is overconfident."""

    bins: tuple[Trust, ...]
    ece: float
    gap: float


def reliability(metrics: Metrics) -> Reliability | None:
    """Return the non-empty bins, ordered by confidence; None if there are none."""
    total = sum(b.count for b in metrics.reliability)
    if not total:
        return None
    bins = sorted((b for b in metrics.reliability if b.count), key=lambda b: b.confidence)
    return Reliability(
        bins=tuple(
            Trust(confidence=b.confidence, accuracy=b.accuracy, share=b.count / total, count=b.count) for b in bins
        ),
        ece=metrics.ece,
        gap=sum(b.count * (b.confidence - b.accuracy) for b in bins) / total,
    )


@dataclass(frozen=True, kw_only=True)
class CorruptionRow:
    """A kind of corruption: accuracy and heat by severity, and the mean accuracy."""

    kind: str
    group: str
    scores: tuple[tuple[float, float], ...]
    mean: float


def corruption_rows(found: Robustness) -> list[CorruptionRow]:
    """Return one row per kind. Heat 0 is an accuracy of 0, heat 1 the accuracy without corruption."""
    return [
        CorruptionRow(
            kind=kind.kind.replace("_", " "),
            group=kind.group,
            scores=tuple((a, min(a / max(found.clean, 1e-9), 1.0)) for a in kind.accuracy),
            mean=sum(kind.accuracy) / len(kind.accuracy),
        )
        for kind in found.kinds
    ]


def severity_means(found: Robustness) -> list[float]:
    """Return the mean accuracy over all kinds, by severity."""
    columns = zip(*(kind.accuracy for kind in found.kinds), strict=True)
    return [sum(column) / len(column) for column in columns]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A row of the layer table; `share` is of all parameters, `weight_bytes` in fp32."""

    row: LayerRow
    share: float
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """The layers and their totals."""

    layers: tuple[Layer, ...]
    params: int
    macs: int
    weight_bytes: int
    activation_bytes: int


def layer_table(record: RunRecord) -> LayerTable:
    """Return sizes and totals of the record's layers."""
    rows, params = record.layers, sum(row.params for row in record.layers)
    return LayerTable(
        layers=tuple(Layer(row=r, share=r.params / max(params, 1), weight_bytes=4 * r.params) for r in rows),
        params=params,
        macs=sum(row.macs for row in rows),
        weight_bytes=4 * params,
        activation_bytes=sum(row.activation_bytes for row in rows),
    )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A base64 PNG with its size in pixels, and the sample that it shows, if any."""

    image: str
    width: int
    height: int
    sample: Sample | None = None


def picture(image: str, sample: Sample | None = None) -> Picture | None:
    """Return the picture in `image`; None if that is not a base64 PNG."""
    try:
        content = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        return None
    width, height = struct.unpack(">II", content[16:24])
    return Picture(image=image, width=width, height=height, sample=sample)


def sample_pictures(record: RunRecord) -> list[tuple[str, list[Picture]]]:
    """Return the samples' pictures, grouped into right and wrong predictions; empty groups are omitted."""
    pictures = list(_pictures(record.samples))
    right = [p for p in pictures if p.sample and p.sample.label == p.sample.prediction]
    wrong = [p for p in pictures if p.sample and p.sample.label != p.sample.prediction]
    groups = [("Most confident correct predictions", right), ("Most confident errors", wrong)]
    return [(title, group) for title, group in groups if group]


def _pictures(samples: Iterable[Sample]) -> Iterator[Picture]:
    for sample in sorted(samples, key=lambda s: -s.confidence):
        found = picture(sample.image, sample)
        if found:
            yield found


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction observed on n images (Wilson 1927)."""
    z = 1.959964
    centre, half = accuracy + z * z / (2 * n), z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def tested(record: RunRecord) -> int:
    """Return the number of test images."""
    return sum(score.support for score in record.test.per_class) or int(record.data.get("n_test") or 0)
