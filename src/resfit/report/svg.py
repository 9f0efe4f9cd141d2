"""Draw figures as inline SVG. Colours come from the page's style sheet, so that drawings follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from resfit.report.figures import (
    Bar,
    Bars,
    Confusion,
    Forest,
    History,
    LineChart,
    Mark,
    Plane,
    Reliability,
    Scatter,
    Series,
)
from resfit.report.words import bare_percent, count, percent, scaled

_WIDTH, _HEIGHT = 340.0, 220.0  # user units: about a chart's size in pixels on a phone, and in three columns
_LEFT, _RIGHT, _TOP, _BOTTOM = 38.0, 10.0, 8.0, 34.0
_FEW_POINTS = 12
_LEVELS = 10
_STROKES = ("", " dashed", " dotted", " dash-dot")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear scale that maps values lo..hi to positions start..end, with tick values."""

    lo: float
    hi: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        return self.start + (value - self.lo) / (self.hi - self.lo) * (self.end - self.start)


def nice_axis(values: Iterable[float], start: float, end: float, *, most: int = 6, snap: bool = True) -> Axis:
    """Return an axis over `values` with about `most` round ticks at most; `snap` makes it end on ticks."""
    found = list(values)
    lo, hi = min(found), max(found)
    if hi - lo < 1e-12:
        pad = abs(lo) * 0.05 or 0.5
        lo, hi = lo - pad if lo else lo, hi + pad  # do not extend rates or losses below zero
    step = _nice_step((hi - lo) / (most - 1))
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, last + 1)]
    if snap:
        lo, hi = ticks[0], ticks[-1]
    return Axis(lo=lo, hi=hi, start=start, end=end, ticks=tuple(t for t in ticks if lo <= t <= hi))


def _nice_step(rough: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is not below `rough`."""
    size = 10.0 ** math.floor(math.log10(rough))
    return next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * (1 - 1e-9))


def _whole_axis(values: Iterable[float], start: float, end: float) -> Axis:
    """Return an axis from the smallest value to the largest, with integer ticks if all values are integers."""
    found = list(values)
    if any(value % 1 for value in found):
        return nice_axis(found, start, end, snap=False)
    lo, hi = min(found), max(found)
    if lo == hi:
        return Axis(lo=lo - 1, hi=hi + 1, start=start, end=end, ticks=(lo,))
    step = max(1, math.ceil(_nice_step((hi - lo) / 5)))
    first = math.ceil(lo / step) * step
    return Axis(lo=lo, hi=hi, start=start, end=end, ticks=tuple(map(float, range(first, int(hi) + 1, step))))


def draw_lines(chart: LineChart) -> Markup:
    """Draw a line chart; if there are few points, each has a dot."""
    points = [point for series in chart.series for point in series.points]
    heights = [y for _, y in points] + ([chart.level[1]] if chart.level else []) + ([0.0] if chart.from_zero else [])
    x = _whole_axis((p[0] for p in points), _LEFT, _WIDTH - _RIGHT)
    y = nice_axis(heights, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(x, y, chart.x, percent_y=chart.percent)]
    if chart.level:
        parts.append(_line(x.start, y(chart.level[1]), x.end, y(chart.level[1]), f"level {tone_class(chart.level[2])}"))
    for series in chart.series:
        parts += _polyline(series, x, y, faint=chart.faint)
    return _svg(_describe(chart), parts)


def _polyline(series: Series, x: Axis, y: Axis, *, faint: bool) -> Iterator[Markup]:
    places = [(x(a), y(b)) for a, b in series.points]
    tone = tone_class(series.tone)
    if len(places) > 1:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        kind = "line faint" if faint else "line"
        yield Markup('<polyline class="{} {}" points="{}"><title>{}</title></polyline>').format(
            kind, tone, path, series.name
        )
    if len(places) == 1 or (len(places) <= _FEW_POINTS and not faint):
        for a, b in places:
            yield Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(tone, a, b)


def _describe(chart: LineChart) -> str:
    def shown(value: float) -> str:
        return percent(value) if chart.percent else f"{value:.4g}"

    if len(chart.series) > 6:
        return f"{chart.title} of {len(chart.series)} runs over {chart.x}s"
    ends = [f"{s.name} from {shown(s.points[0][1])} to {shown(s.points[-1][1])}" for s in chart.series]
    return f"{chart.title} over {len(chart.series[0].points)} {chart.x}s: {'; '.join(ends)}"


def draw_scatter(figure: Scatter) -> Markup:
    """Draw marks with their intervals, and a dashed line at the budget."""
    x = nice_axis(_params(figure), _LEFT, _WIDTH - _RIGHT, most=5)
    y = nice_axis(_accuracies(figure.marks), _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(x, y, "trainable parameters", percent_y=True)]
    if figure.budget:
        parts.append(_line(x(figure.budget), y.start, x(figure.budget), y.end, "budget"))
    for mark in figure.marks:
        parts += _mark(mark, x, y)
    if figure.budget:
        parts.append(_text(x(figure.budget) - 4, y.end + 9, "budget", "end"))  # drawn last, to be on top
    return _svg(f"{figure.title} against parameters: {'; '.join(map(_mark_name, figure.marks))}", parts)


def _params(figure: Scatter) -> list[float]:
    values = [float(mark.params) for mark in figure.marks] + ([float(figure.budget)] if figure.budget else [])
    return [0.0, max(values) * 1.02]


def _accuracies(marks: Sequence[Mark]) -> list[float]:
    ends = [end for mark in marks for end in (mark.interval or (mark.accuracy, mark.accuracy))]
    return [max(0.0, min(ends)), min(1.0, max(ends))]


def _mark(mark: Mark, x: Axis, y: Axis) -> Iterator[Markup]:
    place, tone = x(mark.params), tone_class(mark.tone)
    if mark.interval:
        low, high = (y(min(max(end, y.lo), y.hi)) for end in mark.interval)
        yield _line(place, low, place, high, f"bar {tone}")
        yield _line(place - 3.5, low, place + 3.5, low, f"bar {tone}")
        yield _line(place - 3.5, high, place + 3.5, high, f"bar {tone}")
    yield Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
        tone, place, y(mark.accuracy), _mark_name(mark)
    )


def _mark_name(mark: Mark) -> str:
    return f"{mark.name}: {percent(mark.accuracy)}, {count(mark.params)} parameters, n = {mark.n}"


def draw_plane(figure: Plane) -> Markup:
    """Draw networks as dots; a line connects those on the Pareto front."""
    x = nice_axis((place.x for place in figure.places), _LEFT, _WIDTH - _RIGHT)
    y = nice_axis((place.y for place in figure.places), _HEIGHT - _BOTTOM, _TOP)
    front = sorted((place.x, place.y) for place in figure.places if place.front)
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in front)
    parts = [*_frame(x, y, figure.x_label, percent_y=False)]
    parts.append(Markup('<polyline class="line faint undecided" points="{}"/>').format(path))
    for place in figure.places:
        parts.append(
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{:g}"><title>{}</title></circle>').format(
                tone_class(place.tone), x(place.x), y(place.y), 4.5 if place.front else 2.8, place.name
            )
        )
    return _svg(f"{figure.title}: {len(figure.places)} dots, {len(front)} on the Pareto front", parts)


def draw_reliability(figure: Reliability) -> Markup:
    """Draw accuracy against confidence, each bin linked to the diagonal, above the bins' shares of the images."""
    side, strip = 220.0, 44.0
    x = Axis(lo=0, hi=1, start=_LEFT, end=_LEFT + side, ticks=(0, 0.2, 0.4, 0.6, 0.8, 1))
    y = Axis(lo=0, hi=1, start=_TOP + side, end=_TOP, ticks=(0, 0.2, 0.4, 0.6, 0.8, 1))
    base = y.start + 10 + strip
    most = max(b.share for b in figure.bins)
    parts = [*_grid(y, x.start, x.end, percent_y=True), _line(x(0), y(0), x(1), y(1), "ideal")]
    for b in figure.bins:
        place = x(b.confidence)
        name = f"confidence {percent(b.confidence, 1)}: {percent(b.accuracy, 1)} of {count(b.count)} correct"
        parts += [
            _line(place, y(b.confidence), place, y(b.accuracy), "gap"),
            _line(place, base, place, base - strip * b.share / most, "share"),
            Markup('<circle class="dot t1" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
                place, y(b.accuracy), name
            ),
        ]
    parts.append(_line(x.start, base, x.end, base, "axis"))
    parts += [_text(x(tick), base + 13, bare_percent(tick, 0), "middle") for tick in x.ticks]
    parts.append(_text((x.start + x.end) / 2, base + 27, "confidence, %", "middle"))
    told = f"Reliability diagram: expected calibration error {figure.ece:.4f}"
    return _svg(told, parts, width=_LEFT + side + 12, height=base + 32)


def draw_confusion(figure: Confusion) -> Markup:
    """Draw a confusion matrix of many classes as squares without numbers."""
    n = len(figure.names)
    levels: dict[tuple[str, int], list[str]] = {}
    for i, row in enumerate(figure.rows):
        for j, cell in enumerate(row):
            if cell.count:
                level = max(1, round(cell.heat * _LEVELS))
                levels.setdefault(("right" if cell.right else "wrong", level), []).append(f"M{j} {i}h1v1h-1z")
    squares = [
        Markup('<path class="{}" opacity="{:.1f}" d="{}"/>').format(kind, level / _LEVELS, "".join(cells))
        for (kind, level), cells in sorted(levels.items())
    ]
    border = Markup('<rect class="border" width="{0}" height="{0}" vector-effect="non-scaling-stroke"/>').format(n)
    told = f"Confusion matrix of {n} classes: rows are true classes, columns predictions"
    return _svg(told, [border, *squares], width=n, height=n, kind="matrix")


def draw_forest(row: Forest) -> Markup:
    """Draw one difference with its interval relative to zero."""
    x = Axis(lo=-row.reach, hi=row.reach, start=6, end=154, ticks=())
    tone = "bar t1" if row.decided else "bar undecided"
    parts = [
        _line(x(0), 0, x(0), 20, "axis"),
        _line(x(row.interval[0]), 10, x(row.interval[1]), 10, tone),
        Markup('<circle class="dot {}" cx="{:.1f}" cy="10" r="4"/>').format(
            tone.removeprefix("bar "), x(row.difference)
        ),
    ]
    low, high = (bare_percent(end) for end in row.interval)
    return _svg(f"{bare_percent(row.difference)} points, {low} to {high}", parts, width=160, height=20, kind="forest")


def draw_history(figure: History) -> Markup:
    """Draw one dot per trial, hollow if it was pruned, and a line at the best accuracy so far."""
    x = _whole_axis([float(mark.number) for mark in figure.marks], _LEFT, _WIDTH - _RIGHT)
    y = nice_axis([mark.accuracy for mark in figure.marks], _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(x, y, "trial", percent_y=True)]
    corners = [point for (a, b), (c, _) in pairwise(figure.best) for point in ((a, b), (c, b))] + [*figure.best[-1:]]
    path = " ".join(f"{x(number):.1f},{y(best):.1f}" for number, best in corners)
    parts.append(Markup('<polyline class="line t2" points="{}"><title>best so far</title></polyline>').format(path))
    for mark in figure.marks:
        name = f"trial {mark.number}: {percent(mark.accuracy)}{'' if mark.complete else ', incomplete'}"
        kind = "dot t1" if mark.complete else "dot t8 dashed"
        parts.append(
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(
                kind, x(mark.number), y(mark.accuracy), name
            )
        )
    best = max(mark.accuracy for mark in figure.marks)
    return _svg(f"{figure.title} of {len(figure.marks)} trials, best {percent(best)}", parts)


def draw_bars(figure: Bars) -> Markup:
    """Draw horizontal bars with their intervals and individual values, and a dotted line at the level."""
    row, width = 22.0, 640.0
    left = min(12 + 6.8 * max(len(bar.name) for bar in figure.bars), 0.45 * width)
    bottom = _TOP + row * len(figure.bars)
    x = nice_axis(_bar_ends(figure), left, width - 24, most=7)
    parts: list[Markup] = []
    for tick in x.ticks:
        parts.append(_line(x(tick), _TOP, x(tick), bottom, "grid"))
        parts.append(_text(x(tick), bottom + 14, f"{round(100 * tick if figure.percent else tick, 9):g}", "middle"))
    for n, bar in enumerate(figure.bars):
        parts += _bar(bar, x, _TOP + row * (n + 0.5), figure.percent)
    if figure.level is not None:
        parts.append(_line(x(figure.level), _TOP, x(figure.level), bottom, "budget"))
    parts.append(_line(x.start, _TOP, x.start, bottom, "axis"))
    told = "; ".join(_bar_name(bar, figure.percent) for bar in figure.bars)
    return _svg(f"{figure.title}: {told}", parts, width=width, height=bottom + 20)


def _bar_ends(figure: Bars) -> list[float]:
    ends = [end for bar in figure.bars for end in (bar.value, *(bar.interval or ()), *bar.values)]
    if figure.percent:
        ends = [min(max(end, 0.0), 1.0) for end in ends]
    return [*ends, 0.0] if figure.from_zero else ends


def _bar(bar: Bar, x: Axis, y: float, percent_x: bool) -> Iterator[Markup]:
    tone = tone_class(bar.tone)
    yield _text(x.start - 6, y + 3.5, bar.name, "end")
    yield Markup(
        '<rect class="column {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="13"><title>{}</title></rect>'
    ).format(tone, x.start, y - 6.5, max(x(bar.value) - x.start, 0.0), _bar_name(bar, percent_x))
    for value in bar.values:
        yield Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="1.8"/>').format(tone, x(value), y)
    if bar.interval:
        low, high = (x(min(max(end, x.lo), x.hi)) for end in bar.interval)
        yield _line(low, y, high, y, f"bar {tone}")
        yield _line(low, y - 3.5, low, y + 3.5, f"bar {tone}")
        yield _line(high, y - 3.5, high, y + 3.5, f"bar {tone}")


def _bar_name(bar: Bar, percent_x: bool) -> str:
    return f"{bar.name} {percent(bar.value) if percent_x else f'{bar.value:.3g}'}"


def _frame(x: Axis, y: Axis, label: str, *, percent_y: bool) -> Iterator[Markup]:
    yield from _grid(y, x.start, x.end, percent_y=percent_y)
    yield _line(x.start, y.start, x.end, y.start, "axis")
    for tick in x.ticks:
        yield _text(x(tick), y.start + 14, scaled(tick, digits=None) if tick >= 1000 else f"{tick:g}", "middle")
    yield _text((x.start + x.end) / 2, y.start + 29, label, "middle")


def _grid(y: Axis, left: float, right: float, *, percent_y: bool) -> Iterator[Markup]:
    for tick in y.ticks:
        yield _line(left, y(tick), right, y(tick), "grid")
        yield _text(left - 6, y(tick) + 3.5, f"{round(100 * tick if percent_y else tick, 9):g}", "end")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _svg(
    told: str, parts: Iterable[Markup], *, width: float = _WIDTH, height: float = _HEIGHT, kind: str = "chart"
) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        kind, width, height, told, Markup("").join(parts)
    )


def tone_class(tone: int) -> str:
    """Return the style sheet's classes for a tone: eight colours, solid first, then with three kinds of dashes."""
    return f"t{tone % 8 + 1}{_STROKES[tone // 8 % 4]}"
