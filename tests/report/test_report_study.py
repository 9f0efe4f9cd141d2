"""The pages of studies and searches: figure data first, then what the page says."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from helpers.full_records import CIFAR10, curve, metrics, record
from resfit.record import RunRecord, summarize
from resfit.report import study as study_page
from resfit.report import svg
from resfit.report import tune as tune_page
from resfit.studyrecord import FailedRun, PointRecord, StudyRecord, against_baseline
from resfit.tunerecord import TrialRecord, TuneRecord

EVIL = "<script>alert(1)</script>"


def point(name: str, *values: float) -> PointRecord:
    seeds = tuple(range(len(values)))
    if not values:
        return PointRecord(name=name, overrides={"optim.lr": 0.1}, params=5_122)
    summary = summarize(values)
    return PointRecord(name=name, overrides={}, params=5_122, seeds=seeds, accuracy=summary, test=summary, seconds=61.0)


def make_study(*points: PointRecord, **changes: object) -> StudyRecord:
    fields: dict[str, object] = {
        "resfit": "0.1.0",
        "study": "pair",
        "description": "One against the others",
        "recipe": "seed003",
        "baseline": "base",
        "judged_by": "validation",
        "epochs": 20,
        "fraction": 0.5,
        "wanted": 3 * len(points),
        "points": against_baseline(points, "base"),
        **changes,
    }
    return StudyRecord(**fields)  # type: ignore[arg-type]


WHOLE = make_study(
    point("base", 0.90, 0.91, 0.92),
    point("up", 0.95, 0.96, 0.97),
    point("near", 0.91, 0.90, 0.93),
    point("down", 0.80, 0.81, 0.82),
    point("once", 0.95),
    point("never"),
    failed=(FailedRun(point="never", seed=0, error="the training loss is not finite"),),
)


def runs() -> list[RunRecord]:
    return [
        replace(record(), recipe=name, seed=seed, test=metrics(CIFAR10), curve=curve(5, top=0.9 + seed / 100))
        for name in ("base", "up")
        for seed in (0, 1)
    ]


def text(page: str) -> str:
    HTMLParser().feed(page)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_a_verdict_says_plainly_what_was_found() -> None:
    assert study_page.verdict(WHOLE) == [
        "up is better than the baseline, base.",
        "down is worse than the baseline, base.",
        "near is not significantly different from the baseline, base.",
        "No verdict on once: it needs two finished runs of each and of the baseline, with different results.",
    ]
    assert study_page.verdict(make_study(point("base"), point("a")))[0].startswith("Nothing to compare yet")


def test_bars_hold_every_finished_point_and_the_baseline() -> None:
    bars = study_page.bars(WHOLE)
    assert bars is not None and [bar.name for bar in bars.bars] == ["base", "up", "near", "down", "once"]
    assert bars.level == pytest.approx(0.91) and bars.bars[1].values == (0.95, 0.96, 0.97)
    assert bars.bars[4].interval is None
    drawn = svg.draw_bars(bars)
    assert drawn.count("<rect") == 5 and drawn.count("<circle") == 13
    assert study_page.bars(make_study(point("base"), point("a"))) is None


def test_curves_are_means_over_the_seeds() -> None:
    charts = study_page.mean_curves(WHOLE, runs())
    assert [chart.title for chart in charts] == ["Validation accuracy, %", "Training loss"]
    first = [run.curve for run in runs() if run.recipe == "base"]
    mean = sum(c[-1].val_accuracy or 0 for c in first) / 2
    assert [series.name for series in charts[0].series] == ["base", "up"]
    assert charts[0].series[0].points[-1] == (5.0, pytest.approx(mean))
    stopped = [replace(run, curve=run.curve[:3]) if run.seed else run for run in runs()]
    assert len(study_page.mean_curves(WHOLE, stopped)[0].series[0].points) == 3


def test_networks_of_several_sizes_are_drawn_by_what_they_cost() -> None:
    """A larger one that is no better is beaten; the front holds the others."""
    assert study_page.prices(WHOLE) == []
    sized = [replace(point(name, value), params=params) for name, value, params in SIZES]
    by_size, by_time = study_page.prices(make_study(*sized, point("waits")))
    assert [(place.x, round(place.y, 6), place.front) for place in by_size.places] == [
        (1.0, 10.0, True),
        (2.0, 5.0, True),
        (3.0, 6.0, False),
    ]
    assert by_time.x_label == "seconds per run"
    page = study_page.render_study(make_study(*sized), [])
    assert "error, %, against parameters" in page and page.count("<title>base</title>") >= 2


SIZES = (("base", 0.9, 1_000_000), ("a", 0.95, 2_000_000), ("b", 0.94, 3_000_000))


def test_each_of_many_points_has_a_line_of_its_own_that_the_legend_shows() -> None:
    names = ["base", *(f"point {n}" for n in range(1, 24))]
    finished = [replace(runs()[0], recipe=name) for name in names]
    page = study_page.render_study(make_study(*(point(name, 0.9) for name in names)), finished)
    drawn = re.findall(r'<polyline class="line faint ([^"]+)"', page)
    assert len(drawn) == 2 * 24 and len(set(drawn)) == 24
    (legend,) = re.findall(r'<ul class="legend below">.*?</ul>', page)
    assert re.findall(r'class="key ([^"]+)"', legend) == drawn[:24]
    for stroke in ("dashed", "dotted", "dash-dot"):
        assert f".key.{stroke}" in page and f"svg .{stroke} {{" in page


def test_the_page_of_a_study() -> None:
    page = text(study_page.render_study(WHOLE, runs()))
    for said in (
        "6 settings of seed003; 13 of 18 runs are finished. 1 failed.",
        "20 epochs for base, on 50.0 % of the training images",
        "Judged by the validation accuracy",
        "3 comparisons with base, by Welch's t-test. The verdicts above use p-values corrected for 3 comparisons",
        "96.00 ± 1.00",
        "+5.00",
        "undecided",
        "never, seed 0: the training loss is not finite",
    ):
        assert said in page, said
    by_test = text(study_page.render_study(replace(WHOLE, judged_by="test"), runs()))
    assert "Judged by test accuracy" in by_test and "Test, %" not in by_test


def test_a_study_without_a_finished_run_has_a_page() -> None:
    page = study_page.render_study(make_study(point("base"), point("a")), [])
    assert "0 of 6 runs are finished" in text(page) and "<svg" not in page


def test_a_studys_page_tells_machine_and_command() -> None:
    env = {"cpu": "Some CPU", "gpu": None, "torch": "2.11", "command": "resfit study pair --runs 3"}
    page = text(study_page.render_study(replace(WHOLE, env=env), runs()))
    assert "Some CPU, torch 2.11; command: resfit study pair --runs 3" in page


def test_text_of_others_is_escaped() -> None:
    hostile = make_study(point("base", 0.9, 0.8), point(EVIL, 0.9, 0.8), description=EVIL)
    search = replace(SEARCH, recipe=EVIL, trials=(replace(SEARCH.trials[0], note=EVIL, values={EVIL: EVIL}),))
    for page in (study_page.render_study(hostile, []), tune_page.render_search(search)):
        assert EVIL not in page and "&lt;script&gt;" in page


def trial(number: int, outcome: str, accuracy: float | None = None, seen: float | None = None) -> TrialRecord:
    curve = ((1, 0.2), (2, accuracy or seen)) if accuracy or seen else ()
    fields = {"number": number, "outcome": outcome, "accuracy": accuracy, "curve": curve, "params": 4_000_000}
    return TrialRecord(values={"optim.lr": 0.0123456789, "optim.name": "sgd"}, seconds=3.0, **fields)  # type: ignore[arg-type]


SEARCH = TuneRecord(
    resfit="0.1.0",
    recipe="seed002",
    config={},
    space={"optim.lr": {"low": 0.01, "high": 0.1}, "optim.name": {"choices": ["adam", "sgd"]}},
    budget=5_000_000,
    epochs=2,
    fraction=0.1,
    seed=0,
    data={"name": "cifar10", "n_train": 4500, "n_val": 5000, "n_test": 0},
    env={"python": "3.11"},
    trials=(
        trial(0, "complete", 0.5),
        trial(1, "pruned", seen=0.3),
        replace(trial(2, "refused"), note="6,000,000 parameters, 1,000,000 over the budget of 5,000,000"),
        trial(3, "complete", 0.7),
        trial(4, "complete", 0.6),
    ),
    importance={"optim.name": 0.25, "optim.lr": 0.75},
    best=3,
    best_recipe={"name": "seed002-tuned", "optim": {"lr": 0.0123456789}},
)


def test_a_history_holds_the_best_so_far() -> None:
    history = tune_page.history(SEARCH)
    assert history is not None and [mark.number for mark in history.marks] == [0, 1, 3, 4]
    assert [mark.complete for mark in history.marks] == [True, False, True, True]
    assert history.best == ((0.0, 0.5), (1.0, 0.5), (3.0, 0.7), (4.0, 0.7))
    assert svg.draw_history(history).count("<circle") == 4
    assert tune_page.history(replace(SEARCH, trials=())) is None


def test_importance_is_ranked() -> None:
    bars = tune_page.importance(SEARCH)
    assert bars is not None and [bar.name for bar in bars.bars] == ["optim.lr", "optim.name"]
    assert tune_page.importance(replace(SEARCH, importance={})) is None


def test_the_page_of_a_search() -> None:
    page = text(tune_page.render_search(SEARCH))
    for said in (
        "4 trials over 2 fields; best validation accuracy 70.00 %, trial 3",
        "The test set was never used.",
        "Settings refused before the network was built, for more than 5,000,000 parameters: 1.",
        "1,000,000 over the budget of 5,000,000",
        "0.01235",
        "seed002-tuned",
    ):
        assert said in page, said
    empty = replace(SEARCH, trials=(), importance={}, best=None, best_recipe=None, data={}, env={})
    assert "0 trials over 2 fields" in text(tune_page.render_search(empty))
