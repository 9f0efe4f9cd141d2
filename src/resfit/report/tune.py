"""The HTML page of a hyperparameter search: history, importance of the fields, and all trials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from resfit.files import write_atomic
from resfit.report.figures import Bar, Bars, History, LineChart, Series, TrialMark
from resfit.report.page import environment
from resfit.tunerecord import TrialRecord, TuneRecord

_MOST_CURVES = 40


def write_search(search: TuneRecord, path: Path) -> Path:
    """Write the page of `search` to `path`, atomically, and return the path."""
    return write_atomic(Path(path), render_search(search))


def render_search(search: TuneRecord) -> str:
    """Return the page as HTML."""
    template = environment().get_template("tune.html.j2")
    ranked = sorted(search.trials, key=lambda trial: (-(trial.accuracy or -1.0), not trial.counts, trial.number))
    outcomes = [trial.outcome for trial in search.trials]
    return str(
        template.render(
            title=f"Search around {search.recipe}",
            search=search,
            ranked=ranked,
            best=next((trial for trial in ranked if trial.number == search.best), None),
            counts={outcome: outcomes.count(outcome) for outcome in outcomes},
            history=history(search),
            importance=importance(search),
            curves=curves(search),
        )
    )


def history(search: TuneRecord) -> History | None:
    """Return all trials that have an accuracy (for pruned ones the last measured), and the best accuracy so far."""
    marks = tuple(_marks(search.trials))
    if not marks:
        return None
    best, steps = 0.0, []
    for mark in marks:
        best = max(best, mark.accuracy if mark.complete else 0.0)
        if best:
            steps.append((float(mark.number), best))
    return History(title="Validation accuracy, %", marks=marks, best=tuple(steps))


def _marks(trials: tuple[TrialRecord, ...]) -> Iterator[TrialMark]:
    for trial in trials:
        seen = trial.accuracy if trial.accuracy is not None else (trial.curve[-1][1] if trial.curve else None)
        if seen is not None:
            yield TrialMark(number=trial.number, accuracy=seen, complete=trial.outcome == "complete")


def importance(search: TuneRecord) -> Bars | None:
    """Return one bar per field, the most important first; None if too few trials are complete."""
    if not search.importance:
        return None
    shares = sorted(search.importance.items(), key=lambda item: -item[1])
    bars = tuple(Bar(name=path, tone=0, value=share) for path, share in shares)
    return Bars(title="Share of accuracy variance, %", bars=bars, percent=True, from_zero=True)


def shown_curves(search: TuneRecord) -> list[TrialRecord]:
    """Return the trials whose curves are drawn: the last 40 with more than one epoch, and the best."""
    several = [trial for trial in search.trials if len(trial.curve) > 1]
    return [trial for trial in several[:-_MOST_CURVES] if trial.number == search.best] + several[-_MOST_CURVES:]


def curves(search: TuneRecord) -> LineChart | None:
    """Return validation accuracy by epoch, one line per trial that has more than one epoch; None if there is none."""
    series = tuple(
        Series(
            name=f"trial {trial.number}",
            tone=0 if trial.outcome == "complete" else 7,
            points=tuple((float(epoch), accuracy) for epoch, accuracy in trial.curve),
        )
        for trial in shown_curves(search)
    )
    return LineChart(title="Validation accuracy, %", series=series, percent=True, faint=True) if series else None
