"""The README's table of accuracies: its rows are those of the records and of other people's figures, best first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.brief_records import record
from helpers.places import ROOT


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "results"))
    import standing

    yield standing
    sys.modules.pop("standing", None)


BEST = "best epoch on the test set"


def table(made: Any, tmp_path: Path, groups: dict[str, Any], systems: list[Any], results: list[Any]) -> list[list[str]]:
    reports, anchors = tmp_path / "reports.json", tmp_path / "anchors.json"
    reports.write_text(json.dumps({"systems": systems}))
    anchors.write_text(json.dumps({"results": results}))
    head, rule, *rows = made.standing(groups, reports, anchors).splitlines()
    assert rule.count("---") == head.count("|") - 1
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_rows_of_three_kinds_stand_in_the_order_of_their_accuracy(made, tmp_path):
    runs = [record("seed003", seed, test=test, selection="last") for seed, test in enumerate((0.95, 0.96))]
    reported = [{"accuracy": "95.46", "on": "test"}, {"accuracy": "97.00", "on": "val"}]
    systems = [{"system": "003", "params": 4697162, "epochs": 200, "selection": "best-test", "reported": reported}]
    public = {"network": "WRN", "params": "2.24M", "n": None, "training": "200 epochs", "source": "someone/something"}
    results = [{**public, "accuracy": "94.0"}, {**public, "accuracy_tta": "96.4 ± 0.1", "n": 5}]
    rows = table(made, tmp_path, {"seed003": runs}, systems, results)
    assert rows == [
        ["WRN", "2.24M", "–", "96.4 ± 0.1", "5", "200 epochs", "someone/something"],
        ["**`seed003`**", "0.12M", "95.50 ± 0.71", "–", "2", "200 epochs; final weights, test set used once", "resfit"],
        ["report 003", "4.70M", "95.46", "–", "1", f"200 epochs; presumably the {BEST}", "the five reports"],
        ["WRN", "2.24M", "94.0", "–", "–", "200 epochs", "someone/something"],
    ]


@pytest.mark.parametrize(
    "changes",
    [{"selection": "best-test"}, {"selection": "last", "params": 5_000_001}],
    ids=["peeked", "over the budget"],
)
def test_runs_that_peeked_or_are_too_large_do_not_count(made, tmp_path, changes):
    assert table(made, tmp_path, {"seed003": [record("seed003", 0, test=0.99, **changes)]}, [], []) == []


def test_the_committed_pages_are_what_the_committed_records_make(made):
    import index

    pages = index.pages()
    assert {path.name for path in pages} == {"README.md", "reports.md", "results.json"}
    for path, text in pages.items():
        assert path.read_text() == text, f"{path}: python results/index.py makes another text"
    assert "**`cifar10-best-cpu`**" in pages[ROOT / "README.md"]
