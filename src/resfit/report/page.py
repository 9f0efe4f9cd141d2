"""Render figures and templates as one self-contained HTML page: no scripts, no external resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from resfit.errors import BadInput
from resfit.files import write_atomic
from resfit.record import RunRecord
from resfit.report import figures, svg, words
from resfit.report.groups import DataGroup, RecipeGroup, group, unique

_FILTERS = (
    words.percent,
    words.bare_percent,
    words.confidence,
    words.interval,
    words.points,
    words.count,
    words.number,
    words.scaled,
    words.megabytes,
    words.rate,
    words.duration,
    words.p_value,
    words.duplicates,
    words.data_name,
    words.processor,
    words.device,
    words.peeking,
    words.protocol,
    words.recipe_text,
    words.facts,
    figures.corruption_rows,
    figures.severity_means,
    words.plain_value,
    svg.tone_class,
    svg.draw_lines,
    svg.draw_scatter,
    svg.draw_plane,
    svg.draw_reliability,
    svg.draw_confusion,
    svg.draw_forest,
    svg.draw_bars,
    svg.draw_history,
)


@dataclass(frozen=True, kw_only=True)
class _RunView:
    """One run with its figures; None where there is nothing to show. `id` is the prefix of its sections' HTML ids."""

    id: str
    record: RunRecord
    interval: tuple[float, float] | None
    curves: list[figures.LineChart]
    confusion: figures.Confusion | None
    mistakes: list[figures.Mistake]
    scores: list[figures.ScoreRow]
    average: tuple[float, ...]
    reliability: figures.Reliability | None
    samples: list[tuple[str, list[figures.Picture]]]
    augmented: figures.Picture | None
    layers: figures.LayerTable | None


@dataclass(frozen=True, kw_only=True)
class _DataView:
    """One data set on a page about several runs: its recipes, comparisons, charts and runs."""

    id: str
    group: DataGroup
    scatter: figures.Scatter | None
    overlay: list[figures.LineChart]
    pairs: list[tuple[Any, figures.Forest | None]]
    recipes: list[tuple[RecipeGroup, list[_RunView]]]


def render(records: Sequence[RunRecord], *, title: str | None = None) -> str:
    """Return the page about `records` as HTML: one run in detail, or a comparison of several.

    Duplicate records count once. Raises BadInput if there are none.
    """
    runs = unique(records)
    if not runs:
        raise BadInput("no runs (records): give at least one finished run")
    template = environment().get_template("page.html.j2")
    if len(runs) == 1:
        view = _run_view(runs[0], "run")
        heading = title or f"{runs[0].recipe}, seed {runs[0].seed}"
        return str(template.render(title=heading, runs=runs, view=view, data=[]))
    data = [_data_view(found, f"data-{i}") for i, found in enumerate(group(runs), 1)]
    recipes = sum(len(view.group.recipes) for view in data)
    what = f"{runs[0].recipe}, {len(runs)} runs" if recipes == 1 else f"{len(runs)} runs of {recipes} recipes"
    return str(template.render(title=title or what, runs=runs, view=None, data=data))


def write_report(records: Sequence[RunRecord], path: Path) -> Path:
    """Write the page about `records` to `path`, atomically, and return the path."""
    return write_atomic(Path(path), render(records))


@cache
def environment() -> Any:
    """Return the Jinja environment, with the formatting and drawing functions that the templates use as filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update({function.__name__: function for function in _FILTERS})
    return made


def _run_view(record: RunRecord, name: str) -> _RunView:
    test, n = record.test, figures.tested(record)
    return _RunView(
        id=name,
        record=record,
        interval=figures.wilson(record.accuracy, n) if n else None,
        curves=figures.curves(record),
        confusion=figures.confusion(test),
        mistakes=figures.mistakes(test),
        scores=figures.class_scores(test),
        average=figures.macro_average(test),
        reliability=figures.reliability(test),
        samples=figures.sample_pictures(record),
        augmented=figures.picture(record.augmented),
        layers=figures.layer_table(record) if record.layers else None,
    )


def _data_view(found: DataGroup, name: str) -> _DataView:
    pairs = found.pairs()
    views = [
        (recipe, [_run_view(run, f"{name}-recipe-{i}-run-{j}") for j, run in enumerate(recipe.runs, 1)])
        for i, recipe in enumerate(found.recipes, 1)
    ]
    return _DataView(
        id=name,
        group=found,
        scatter=figures.scatter(found),
        overlay=figures.overlay(found),
        pairs=list(zip(pairs, figures.forest([(pair.comparison, pair.decided) for pair in pairs]), strict=True)),
        recipes=views,
    )
