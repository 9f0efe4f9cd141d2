"""The report: figure data first, then the page's structure, and once a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from helpers.full_records import CIFAR10, CONFIG, LAYERS, curve, metrics, picture, record
from helpers.places import ROOT
from resfit.cli import main
from resfit.errors import BadInput
from resfit.record import (
    Agreement,
    CallTimes,
    ExportRecord,
    GivenModel,
    RunRecord,
    Sample,
)
from resfit.report import figures, render, svg, words, write_report
from resfit.report.groups import group, unique
from resfit.report.tune import render_search
from resfit.tunerecord import read_search

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


def bare() -> RunRecord:
    """One epoch, no validation, no TTA, and nothing that a record may leave out."""
    return record(
        description="",
        layers=(),
        epochs=1,
        env={},
        data={"name": "cifar10", "n_train": 50_000, "n_val": 0, "n_test": 10_000},
        protocol={"selection": "last", "tta": False, "test_scored": 1, "peeking": False},
        val=None,
        test=metrics(tta=None),
        curve=curve(1, val=False),
        augmented="",
        samples=(),
    )


def hundred() -> RunRecord:
    names = tuple(f"class {i:02}" for i in range(100))
    data = {**record().data, "name": "cifar100", "classes": list(names), "digest": "c100"}
    return record(recipe="wide", test=metrics(names, accuracy=0.76, tta=0.772), data=data)


def peeking() -> RunRecord:
    protocol = {**record().protocol, "selection": "best-test", "peeking": True, "test_scored": 41, "best_epoch": 37}
    return record(protocol=protocol, curve=curve(40, test=True))


def hostile() -> RunRecord:
    names = (EVIL, '" onmouseover="alert(2)', *CIFAR10[2:])
    (export, *_) = exported().exports
    config = {**CONFIG, "name": EVIL, "optim": {"name": EVIL, "--x": "</pre><b>"}}
    return record(
        recipe=EVIL,
        description=EVIL,
        config=config,
        test=metrics(names),
        env={"cpu": EVIL, EVIL: EVIL},
        data={**record().data, "name": EVIL, "classes": list(names), "notes": [EVIL]},
        protocol={**record().protocol, "deviations": [EVIL]},
        samples=(
            Sample(image=picture(), label=EVIL, prediction=EVIL, confidence=0.9),
            Sample(image='" onerror="alert(3)', label="cat", prediction="dog", confidence=0.9),
        ),
        layers=(replace(LAYERS[0], name=EVIL, kind=EVIL),),
        exports=(replace(export, file=EVIL, format=EVIL, env={"cpu": EVIL}),),
        events=(EVIL,),
    )


def exported(**changes: object) -> RunRecord:
    """A run with an export to ONNX and one to int8."""
    times = [
        CallTimes(runtime=runtime, batch_size=size, calls=100, median_ms=ms * size, p99_ms=1.5 * ms * size)
        for runtime, ms in (("network, PyTorch", 2.0), ("export, ONNX Runtime", 1.0))
        for size in (1, 7, 64)
    ]
    onnx = ExportRecord(
        resfit="0.1.0",
        file="model.onnx",
        format="onnx",
        input="uint8",
        runtime="ONNX Runtime",
        bytes=7_900_000,
        bytes_before=8_000_000,
        norms_folded=9,
        data="cifar10",
        agreement=tuple(Agreement(batch_size=n, images=1000, largest_difference=2e-6, equal=1.0) for n in (1, 7, 64)),
        smallest_equal=0.999,
        largest_allowed=0.02,
        accuracy_before=0.9345,
        accuracy_after=0.9346,
        latency=tuple(times),
        env={"cpu": "A processor"},
    )
    return record(exports=(onnx, replace(onnx, file="model.int8.onnx", format="int8", bytes=2_000_000)), **changes)


def sweep() -> list[RunRecord]:
    """Two recipes of three seeds, one that peeked, and one on another data set."""
    small = {**CONFIG, "name": "cifar10-94"}
    a = [record(seed=s, test=metrics(tta=0.9541 + 0.0007 * s), params=4_697_162) for s in range(3)]
    b = [
        record(seed=s, recipe="cifar10-94", config=small, test=metrics(accuracy=0.935, tta=0.9405 + 0.0009 * s))
        for s in range(3)
    ]
    c = replace(peeking(), recipe="seed001d", config={**CONFIG, "name": "seed001d"}, params=4_977_226)
    return [*a, *b, c, hundred()]


class Page(HTMLParser):
    """What the tests ask of a page: balance, ids, anchors, tags with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]

    @property
    def sections(self) -> set[str]:
        return {attrs["id"] for tag, attrs in self.tags if tag == "section" and "id" in attrs}


PAGES = {
    "single": lambda: [record()],
    "exported": lambda: [exported()],
    "bare": lambda: [bare()],
    "hundred": lambda: [hundred()],
    "peeking": lambda: [peeking()],
    "hostile": lambda: [hostile()],
    "sweep": sweep,
    "hostile sweep": lambda: [hostile(), replace(hostile(), seed=1), replace(hostile(), recipe="b")],
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render(make()) for name, make in PAGES.items()}


# ---- figure data


def test_curves_hold_the_records_values_and_the_final_test_score() -> None:
    loss, accuracy, rate = figures.curves(record())
    assert [s.name for s in loss.series] == ["train", "validation"]
    assert accuracy.level == ("final test", 0.9345, accuracy.level[2] if accuracy.level else None)
    assert accuracy.series[1].points[-1] == (40.0, record().curve[-1].val_accuracy)
    assert [s.name for s in rate.series] == ["learning rate"]


def test_lines_without_values_are_left_out() -> None:
    loss, accuracy, _ = figures.curves(bare())
    assert [s.name for s in loss.series] == [s.name for s in accuracy.series] == ["train"]
    assert len(loss.series[0].points) == 1


def test_a_curve_skips_epochs_that_were_not_validated_or_not_finite() -> None:
    points = list(curve(4))
    points[1] = replace(points[1], val_loss=None, val_accuracy=None)
    points[2] = replace(points[2], val_loss=math.nan, train_loss=math.inf)
    loss = figures.curves(record(curve=tuple(points)))[0]
    assert [x for x, _ in loss.series[0].points] == [1, 2, 4]
    assert [x for x, _ in loss.series[1].points] == [1, 4]


def test_a_run_that_peeked_shows_its_test_curve() -> None:
    accuracy = figures.curves(peeking())[1]
    assert [s.name for s in accuracy.series] == ["train", "validation", "test"]
    assert accuracy.level is None


def test_confusion_shares_sum_to_one_and_mistakes_have_their_own_scale() -> None:
    table = figures.confusion(metrics())
    assert table is not None and table.numbers
    for row in table.rows:
        assert sum(cell.share for cell in row) == pytest.approx(1.0)
    wrong = [cell for row in table.rows for cell in row if not cell.right]
    assert max(cell.heat for cell in wrong) == 1.0
    assert all(0.0 <= cell.heat <= 1.0 for row in table.rows for cell in row)


def test_mistakes_are_sorted_by_their_share() -> None:
    found = figures.mistakes(metrics(), most=4)
    assert len(found) == 4
    assert [m.share for m in found] == sorted((m.share for m in found), reverse=True)
    assert (found[0].label, found[0].prediction) in {("deer", "dog"), ("truck", "airplane")}


def test_many_classes_are_listed_hardest_first() -> None:
    rows = figures.class_scores(hundred().test)
    f1 = [row.scores[2][0] for row in rows]
    assert f1 == sorted(f1) and len(rows) == 100
    assert [row.name for row in figures.class_scores(metrics())] == list(CIFAR10)


def test_equal_scores_have_no_heat_to_divide_by() -> None:
    perfect = metrics(accuracy=1.0)
    assert {heat for row in figures.class_scores(perfect) for _, heat in row.scores} == {0.0}
    assert figures.mistakes(perfect) == []
    render([record(test=perfect)])


def test_reliability_keeps_the_bins_and_their_shares() -> None:
    figure = figures.reliability(metrics())
    assert figure is not None and figure.ece == 0.0131
    assert sum(b.share for b in figure.bins) == pytest.approx(1.0)
    assert figure.gap == pytest.approx(
        sum(b.count * (b.confidence - b.accuracy) for b in metrics().reliability) / 10_000
    )
    assert figures.reliability(replace(metrics(), reliability=())) is None


def test_layer_totals() -> None:
    table = figures.layer_table(record())
    assert table.params == sum(row.params for row in LAYERS)
    assert table.weight_bytes == 4 * table.params
    assert sum(layer.share for layer in table.layers) == pytest.approx(1.0)


def test_pictures_have_their_size_and_anything_else_is_refused() -> None:
    found = figures.picture(picture(20, 10))
    assert found is not None and (found.width, found.height) == (20, 10)
    assert figures.picture("") is figures.picture("not base64!") is figures.picture("aGVsbG8=") is None


def test_the_wilson_interval() -> None:
    low, high = figures.wilson(0.94, 10_000)
    assert (round(low, 4), round(high, 4)) == (0.9352, 0.9445)
    assert figures.wilson(1.0, 10)[1] == pytest.approx(1.0)


# ---- groups


def test_runs_are_grouped_by_data_set_and_recipe_best_first() -> None:
    cifar10, cifar100 = group(sweep())
    assert (cifar10.name, cifar100.name) == ("CIFAR-10", "CIFAR-100")
    assert [(r.label, r.accuracy.n) for r in cifar10.recipes] == [("seed003", 3), ("cifar10-94", 3), ("seed001d", 1)]
    assert [run.seed for run in cifar10.recipes[0].runs] == [0, 1, 2]
    assert cifar10.recipes[0].accuracy_tta is not None
    assert cifar10.recipes[0].accuracy_tta.mean == pytest.approx(0.9548)


def test_recipes_of_one_name_with_different_settings_are_not_averaged() -> None:
    longer = {**CONFIG, "train": {"epochs": 300, "batch_size": 100}}
    (only,) = group([record(), record(config=longer, seed=1)])
    labels = sorted(recipe.label for recipe in only.recipes)
    assert labels == ["seed003 · train.epochs 200", "seed003 · train.epochs 300"]


def test_runs_from_other_weights_are_labelled_by_them() -> None:
    begun = record(seed=1, init=GivenModel(path="runs/a/0", sha256="0" * 64, params=5))
    (only,) = group([record(), begun])
    labels = sorted(recipe.label for recipe in only.recipes)
    assert labels == ["seed003 · init none", "seed003 · init runs/a/0 (00000000)"]


@pytest.mark.parametrize(("epochs", "words"), [(40, "final weights"), (80, "final averaged weights")])
def test_weights_are_called_averaged_only_where_they_are(epochs: int, words: str) -> None:
    config = {**CONFIG, "train": {"epochs": 80}, "average": {"name": "swa"}}
    stopped = record(config=config, epochs=epochs, protocol={"selection": "last"})
    assert f"Evaluated the {words}, after {epochs} epochs." in Page(render([stopped])).text


@pytest.mark.parametrize(
    ("bounds", "text"), [((-0.1764, 0.4236), "0.00 to 42.36"), ((0.99, 1.02), "99.00 to 100.00"), (None, "–")]
)
def test_an_interval_stays_within_what_an_accuracy_can_be(bounds: tuple[float, float] | None, text: str) -> None:
    assert words.interval(bounds) == text


def test_another_split_of_the_same_data_is_the_same_data_set() -> None:
    whole = {**record().data, "n_train": 50_000, "n_val": 0, "digest": "other"}
    (only,) = group([record(), record(data=whole, recipe="b", config={**CONFIG, "data": {"val": 0}})])
    assert len(only.recipes) == 2


def test_two_folders_of_images_are_told_apart() -> None:
    one, two = ({**record().data, "name": "folder", "n_train": n} for n in (300, 400))
    assert [part.name for part in group([record(data=one), record(data=two)])] == ["Folder (1)", "Folder (2)"]
    alike = [record(data={**one, "test_digest": digest}) for digest in ("a", "b")]
    assert [part.name for part in group(alike)] == ["Folder (1)", "Folder (2)"]
    less = {**one, "test_digest": "a", "n_train": 1}
    assert [part.name for part in group([record(data=less), alike[0]])] == ["Folder"]
    assert [part.name for part in group([record(data=one), alike[0]])] == ["Folder"]  # one of an older version


def test_pairs_need_two_runs_each_and_put_the_better_first() -> None:
    cifar10, cifar100 = group(sweep())
    (pair,) = cifar10.pairs()
    assert (pair.better.label, pair.worse.label) == ("seed003", "cifar10-94")
    assert pair.comparison.difference == pytest.approx(0.0134) and pair.decided
    assert cifar100.pairs() == []


def test_recipes_are_compared_without_tta_where_one_run_lacks_it() -> None:
    plain = [record(recipe="b", config={**CONFIG, "name": "b"}, seed=s, test=metrics(tta=None)) for s in (0, 1)]
    (only,) = group([record(), record(seed=1), *plain])
    assert not only.tta
    assert only.ranked_by(only.recipes[0]).mean == pytest.approx(0.9345)


def test_a_record_given_twice_is_one_run() -> None:
    assert len(unique([record(), record(), record(seed=1)])) == 2


def test_the_share_of_time_for_checkpoints_is_told_where_it_was_measured() -> None:
    assert "0.20 % of it spent on checkpoints" in Page(render([record(seconds_saving=2.9)])).text
    assert "checkpoints" not in Page(render([record()])).text


def test_repeated_seeds_are_told() -> None:
    again = record(seconds_to_result=1.0)
    (only,) = group([record(), again])
    assert only.recipes[0].repeated == (0,)
    assert "not independent" in Page(render([record(), again])).text


def test_times_of_different_machines_are_not_averaged() -> None:
    gpu = record(seed=1, device="cuda", env={"gpu": "NVIDIA H200"})
    (only,) = group([record(), gpu])
    assert only.recipes[0].seconds is None and only.recipes[0].rate is None


def test_the_scatter_has_a_mark_for_each_recipe() -> None:
    cifar10, cifar100 = group(sweep())
    figure = figures.scatter(cifar10)
    assert figure is not None and figure.budget == 5_000_000
    assert [(m.name, m.params, m.n) for m in figure.marks] == [
        ("seed003", 4_697_162, 3),
        ("cifar10-94", 1_972_792, 3),
        ("seed001d", 4_977_226, 1),
    ]
    assert figure.marks[2].interval is None
    assert figures.scatter(cifar100) is None


def test_the_overlay_falls_back_to_training_where_a_run_has_no_validation() -> None:
    (with_val,) = group([record(), record(seed=1)])
    (without,) = group([record(), record(seed=1, curve=curve(40, val=False))])
    assert figures.overlay(with_val)[0].title == "Validation accuracy, %"
    assert figures.overlay(without)[0].title == "Training accuracy, %"
    assert len(figures.overlay(without)[0].series) == 2


# ---- scales and words


@pytest.mark.parametrize("values", [(0.0, 0.1), (0.4561, 0.9412), (93.1, 93.4), (0.02, 0.02), (0.0, 0.0), (1e-5, 3e-4)])
def test_axes_hold_their_values_between_round_ticks(values: tuple[float, float]) -> None:
    axis = svg.nice_axis(values, 0, 100)
    assert axis.lo <= min(values) and axis.hi >= max(values)
    assert 3 <= len(axis.ticks) <= 8
    steps = {round(b - a, 9) for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)}
    assert len(steps) == 1


def test_numbers_read_well() -> None:
    assert words.percent(0.94123) == "94.12\N{NO-BREAK SPACE}%"
    assert words.count(1_972_792) == "1,972,792"
    assert words.duration(1450.2) == "24\xa0min\xa010\xa0s"
    assert words.duration(59.96) == "1\xa0min\xa000\xa0s"
    assert words.duration(3599.9) == "1\xa0h\xa000\xa0min"
    assert words.duration(3.42) == "3.4\xa0s"
    assert words.points(0.00523) == "+0.52" and words.points(-0.0001) == f"{words.MINUS}0.01"
    assert words.points(-1e-9) == "0.00" and words.confidence(0.99999) == ">\xa099.99\xa0%"
    assert words.scaled(123_400_000) == "123.4\xa0M" and words.scaled(2_000_000) == "2\xa0M"
    assert [words.scaled(tick, digits=None) for tick in (1000, 1250, 3610)] == ["1\xa0k", "1.25\xa0k", "3.61\xa0k"]
    assert words.p_value(0.0004) == "<\xa00.001" and words.p_value(0.0312) == "0.031"
    assert words.rate(2345.6) == "2,346"
    assert words.percent(None) == words.rate(math.inf) == words.duration(math.nan) == words.count(None) == words.DASH


def test_the_protocol_in_words() -> None:
    told = " ".join(words.protocol(record()))
    assert "Trained on 45,000 images; 5,000 others were set aside for validation." in told
    assert "Evaluated the final weights, after 40 epochs." in told
    assert "used once, at the end" in told and "over six views" in told
    told = " ".join(words.protocol(bare()))
    assert "all 50,000 training images" in told and "after 1 epoch." in told and "No test-time augmentation." in told
    told = " ".join(words.protocol(peeking()))
    assert "epoch 37, the epoch with the best test accuracy" in told and "used 41 times" in told


def test_what_a_run_was_given_is_part_of_its_protocol() -> None:
    given = GivenModel(path="runs/a/0", sha256="0" * 64, params=5, taken="all weights", note="chosen on the test set")
    told = " ".join(words.protocol(record(init=given, teachers=(given, given))))
    assert "Initialized from a trained network, runs/a/0: all weights (chosen on the test set)." in told
    assert told.count("Distilled from a trained network") == 2
    assert "trained network" not in " ".join(words.protocol(record()))


def test_what_befell_a_run_is_told() -> None:
    assert "Event: epoch 3: rates halved." in words.protocol(record(events=("epoch 3: rates halved",)))


def test_the_recipe_is_text_that_yaml_reads_back() -> None:
    import yaml

    def without_unset(value: object) -> object:
        if isinstance(value, dict):
            return {key: without_unset(item) for key, item in value.items() if item is not None}
        return [without_unset(item) for item in value] if isinstance(value, list) else value

    config = {**CONFIG, "notes": ["off", "a: b", "1e-4", " padded", "x" * 80], "empty": {}, "none": []}
    read = yaml.safe_load("\n".join(words.recipe_text(config)))
    read["optim"]["weight_decay"] = float(read["optim"]["weight_decay"])
    assert read == without_unset(config)


# ---- the page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_balanced_its_ids_are_unique_and_its_anchors_lead_somewhere(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert page.sections <= set(ids)
    assert all(href.startswith("#") and href[1:] in ids for href in page.values("href"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing(pages: dict[str, str], name: str) -> None:
    page, html = Page(pages[name]), pages[name]
    assert not {tag for tag, _ in page.tags} & {"link", "script", "iframe", "object", "embed", "base", "form"}
    assert all(src.startswith("data:image/png;base64,") for src in page.values("src"))
    assert not re.search(r"https?://|url\(|@import", html)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_leaked_values(pages: dict[str, str], name: str) -> None:
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", Page(pages[name]).text)
    assert not re.search(r'="[^"]*\bnan\b', pages[name])


def test_the_headline(pages: dict[str, str]) -> None:
    text = Page(pages["single"]).text
    for part in ("94.12 %", "93.45 % without TTA", "93.80 % on validation", "1,972,792", "39.5 % of the budget"):
        assert part in text
    for part in ("24 min 10 s", "2,346", "bf16, 16 threads", "AMD EPYC 9654", "seed003, seed 0"):
        assert part in text
    assert "Peeked" not in text


def test_a_single_run_has_every_section(pages: dict[str, str]) -> None:
    names = ["protocol", "curves", "classes", "calibration", "samples"]
    names += ["augmented", "layers", "recipe", "data", "environment"]
    assert Page(pages["single"]).sections == {f"run-{name}" for name in names}


def test_sections_without_data_vanish(pages: dict[str, str]) -> None:
    page = Page(pages["bare"])
    names = ("protocol", "curves", "classes", "calibration", "recipe", "data")
    assert page.sections == {f"run-{name}" for name in names}
    assert "TTA" not in page.text and "on validation" not in page.text


def test_a_hundred_classes_get_a_drawn_matrix_and_the_most_confused_pairs(pages: dict[str, str]) -> None:
    page = Page(pages["hundred"])
    assert "matrix" in page.values("class") and "heat confusion" not in page.values("class")
    assert "Most frequent confusions" in page.text and "All 100 classes" in page.text
    assert len(pages["hundred"]) < 300_000


def test_peeking_is_marked_on_both_pages(pages: dict[str, str]) -> None:
    single = Page(pages["peeking"]).text
    assert "Peeked at the test set. The weights were chosen on the test set itself" in single
    assert "which was used 41 times" in single
    several = Page(pages["sweep"])
    assert "Peeked at the test set: seed001d" in several.text
    assert several.values("class").count("badge") >= 3


def test_untrusted_text_is_escaped_everywhere(pages: dict[str, str]) -> None:
    for name in ("hostile", "hostile sweep"):
        assert EVIL not in pages[name] and "&lt;script&gt;alert(1)" in pages[name]
        assert 'onerror="' not in pages[name]


def test_several_runs_are_listed_compared_and_linked(pages: dict[str, str]) -> None:
    page = Page(pages["sweep"])
    assert "95.48 ± 0.07" in page.text and "94.14 ± 0.09" in page.text
    assert "+1.34" in page.text and "< 0.001" in page.text
    links = [href for href in page.values("href") if "-run-" in href]
    assert len(links) == 8
    assert {"data-1", "data-2", "data-1-differences"} <= page.sections and "data-2-differences" not in page.sections


def test_titles(pages: dict[str, str]) -> None:
    assert "<title>A &amp; B</title>" in render([bare()], title="A & B")
    assert "<title>8 runs of 4 recipes</title>" in pages["sweep"]
    assert "<title>seed003, 2 runs</title>" in render([record(), record(seed=1)])


def test_nothing_to_report_is_bad_input() -> None:
    with pytest.raises(BadInput, match="no runs"):
        render([])


def test_a_record_that_went_through_json_gives_the_same_page(pages: dict[str, str]) -> None:
    again = RunRecord.from_dict(json.loads(json.dumps(record().to_dict())))
    assert render([again]) == pages["single"]


def test_write_report_replaces_the_file_whole(tmp_path: Path, pages: dict[str, str]) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_report([record()], path) == path
    assert path.read_text(encoding="utf-8") == pages["single"]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR
    write_report([bare()], path)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(BadInput):
        write_report([], path)
    assert path.read_text(encoding="utf-8") == pages["bare"]


def test_exports_are_a_section(pages: dict[str, str]) -> None:
    page = Page(pages["exported"])
    assert "run-exports" in page.sections
    for part in ("model.onnx", "model.int8.onnx", "7.900", "100.00", "2e-06", "93.46", "64.00, 96.00", "A processor"):
        assert part in page.text, part
    assert "run-exports" not in Page(pages["single"]).sections


def test_importing_the_report_is_light() -> None:
    code = "import sys, resfit.report; print(*{'torch', 'numpy', 'matplotlib', 'jinja2', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Headless Chromium on a file; gives back what it prints."""
    if shutil.which("chromium") is None:
        pytest.skip("no chromium")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]

    def run(page: Path, *options: str) -> str:
        full = [*command, *options, page.as_uri()]
        return subprocess.run(full, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def test_a_browser_draws_the_page(tmp_path: Path, browse: Callable[..., str]) -> None:
    page, shot = write_report(sweep(), tmp_path / "report.html"), tmp_path / "shot.png"
    browse(page, f"--screenshot={shot}", "--window-size=800,1000")
    with Image.open(shot) as image:
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colors is not None and len(colors) > 50


def other_pages(folder: Path) -> dict[str, str]:
    """The pages of studies, a search, a design and the benchmarks, from the committed records."""
    results = ROOT / "results"
    assert main(["design", "--budget", "500k", "--out", str(folder / "design.html")]) == 0
    records = shutil.copytree(ROOT / "benchmarks" / "records", folder / "records")
    command = [sys.executable, str(ROOT / "benchmarks" / "page.py"), str(records), "--out", f"{folder}/benchmarks.html"]
    subprocess.run(command, check=True, capture_output=True)
    found = [*results.glob("*.html"), folder / "design.html", folder / "benchmarks.html"]
    search = render_search(read_search(results / "tune-seed002.json"))
    return {path.name: path.read_text(encoding="utf-8") for path in found} | {"search": search}


def test_no_page_is_wider_than_a_phone(tmp_path: Path, pages: dict[str, str], browse: Callable[..., str]) -> None:
    """Each page in a frame of 360 pixels, every <details> open, measured by a script that the pages don't have."""
    measure = (
        "<script>for (const part of document.querySelectorAll('details')) part.open = true;"
        "parent.postMessage(`${location.pathname.split('/').pop()} ${document.documentElement.scrollWidth}`, '*')"
        "</script></body>"
    )
    frames, all_pages = [], {**pages, **other_pages(tmp_path)}
    for i, html in enumerate(all_pages.values()):
        free = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", measure)
        (tmp_path / f"{i}.html").write_text(free, encoding="utf-8")
        frames.append(f'<iframe src="{i}.html" width="360" height="800" style="border:0"></iframe>')
    collect = "<script>onmessage = event => document.body.append(` width=${event.data};`)</script>"
    (tmp_path / "all.html").write_text(f"<body>{collect}{''.join(frames)}</body>", encoding="utf-8")
    widths = re.findall(
        r"width=(\d+).html (\d+);", browse(tmp_path / "all.html", "--dump-dom", "--virtual-time-budget=5000")
    )
    names = list(all_pages)
    assert {names[int(n)]: int(width) for n, width in widths} == dict.fromkeys(names, 360)
