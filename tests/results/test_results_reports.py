"""results/reports.md: every cell comes from a record or from what the report says, and says which runs it is of."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.brief_records import record
from helpers.places import ROOT
from resfit.record import RunRecord

RESULTS = ROOT / "results"
COLUMNS = ("report", "recipe", "said", "params", "reported", "own", "ours", "epochs", "device", "command")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RESULTS))
    import index

    yield index
    for name in ("index", "reports"):
        sys.modules.pop(name, None)


def rows(index: Any, folder: Path, *records: RunRecord) -> dict[str, dict[str, str]]:
    """The page's cells by report and column, from the records as they are committed."""
    for each in records:
        peeked = "-peeked" if each.protocol["peeking"] else ""
        place = folder / f"{each.recipe}{peeked}"
        place.mkdir(exist_ok=True)
        (place / f"{each.seed}.json").write_text(json.dumps(each.to_dict()))
    page = index.reports_md(folder)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    assert all(len(row) == len(COLUMNS) for row in cells)
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in cells[2:]}


def test_each_system_of_the_five_reports_has_a_row_even_without_a_record(index, tmp_path):
    found = rows(index, tmp_path)
    assert list(found) == ["000", "001 a", "001 b", "001 c", "001 d", "002", "003", "004"]
    for row in found.values():
        assert row["ours"] == row["epochs"] == row["device"] == row["command"] == "not measured yet"
    assert (found["002"]["params"], found["004"]["params"]) == ("2,648,858", "4,398,890"), "prices need no run"
    assert found["003"]["own"] == "not measured yet"


def test_what_the_reports_say_is_the_missions(index, tmp_path):
    """Typed here a second time, from the reports."""
    found = rows(index, tmp_path)
    said = {name: (row["said"], row["reported"]) for name, row in found.items()}
    assert said == {
        "000": ("4,729,610", "89.75 % (val)"),
        "001 a": ("2,777,674", "93.06 % (test)"),
        "001 b": ("2,797,610", "92.37 % (test)"),
        "001 c": ("4,366,250", "92.80 % (test)"),
        "001 d": ("4,977,226", "94.98 % (test)<br>95.14 % (test, L2 only)"),
        "002": ("not reported", "84.1 % (test)"),
        "003": ("4,697,162", "95.46 % (test)"),
        "004": ("4,398,890", "91.27 % (val)<br>90.74 % (test)"),
    }


def test_ours_is_a_mean_over_runs_that_did_not_peek_and_the_reports_is_marked(index, tmp_path):
    found = rows(
        index,
        tmp_path,
        record("seed003", 0, test=0.94, params=4_697_162),
        record("seed003", 1, test=0.95, params=4_697_162),
        record("seed003", 0, test=0.97, selection="best-test", params=4_697_162, gpu="A GPU"),
    )
    row = found["003"]
    assert row["ours"] == "94.50 ± 0.71 % (n=2)"
    assert row["own"] == "97.00 % (test, peeked, n=1)"
    assert row["params"] == "4,697,162"
    assert row["epochs"] == "200 of 200, full length"
    assert row["device"] == "A GPU<br>cpu, amx_bf16, 2 threads, bf16"
    commands = row["command"].split("<br>")
    assert commands[0] == "`resfit train seed003 --seed 0 --evaluate.selection best-test`"
    assert commands[1:] == [f"`resfit train seed003 --seed {seed} --evaluate.selection last`" for seed in (0, 1)]
    assert found["001 d"]["ours"] == "not measured yet"


def test_a_shortened_run_says_how_it_ended(index, tmp_path):
    for epochs, planned, told in (
        (10, 10, "10 of 200, shortened"),
        (5, 6, "5 of 200, shortened, stopped early"),
        (120, 200, "120 of 200, stopped early"),
    ):
        found = rows(index, tmp_path, record("seed003", 0, test=0.9, epochs=epochs, planned=planned))
        assert found["003"]["epochs"] == told


def test_a_report_that_chose_by_validation_is_held_against_both_of_its_measures(index, tmp_path):
    row = rows(index, tmp_path, record("seed004", 0, test=0.91, val=0.92, epochs=130))["004"]
    assert row["own"] == "92.00 % (val, n=1)<br>91.00 % (test, n=1)"
    assert row["ours"] == "91.00 % (n=1)"
    assert row["epochs"] == "130 of 200, stopped early"
    assert len(row["command"].split("<br>")) == 1


def test_the_longest_runs_stand_for_a_system_and_short_ones_are_called_so(index, tmp_path):
    short = [record("seed003", seed, test=0.9, planned=12) for seed in (0, 1, 2)]
    row = rows(index, tmp_path, *short)["003"]
    assert (row["ours"], row["epochs"]) == ("90.00 ± 0.00 % (n=3)", "12 of 200, shortened")
    row = rows(index, tmp_path, *short, record("seed003", 7, test=0.95))["003"]
    assert (row["ours"], row["epochs"]) == ("95.00 % (n=1)", "200 of 200, full length")


def test_peeking_runs_lie_apart_and_are_no_recipes_result(index, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "HERE", tmp_path)
    for n, run in enumerate((record("seed003", 0, test=0.94), record("seed003", 0, test=0.99, selection="best-test"))):
        (tmp_path / "runs" / str(n)).mkdir(parents=True)
        (tmp_path / "runs" / str(n) / "record.json").write_text(json.dumps(run.to_dict()))
        index.add([str(tmp_path / "runs" / str(n))])
    names = sorted(path.parent.name for path in tmp_path.glob("seed*/0.json"))
    assert names == ["seed003", "seed003-peeked"]
    groups = index.committed(tmp_path)
    assert [entry["mean"] for entry in index.shipped(groups).values()] == [0.94]
    assert "99.00 % (peeked)" in index.table(groups)


def test_a_record_in_another_recipes_folder_counts_there_where_its_settings_are_that_recipes(index, tmp_path):
    file = tmp_path / "cifar10-95-cpu" / "0.json"
    file.parent.mkdir()
    old = record("cifar10-95-cpu", 0, test=0.95)
    file.write_text(json.dumps(replace(old, recipe="old-name", config={**old.config, "name": "old-name"}).to_dict()))
    (runs,) = index.committed(tmp_path).values()
    assert (runs[0].recipe, runs[0].config) == ("cifar10-95-cpu", old.config)
    file.write_text(json.dumps(record("cifar10-94", 0, test=0.95).to_dict()))
    with pytest.raises(SystemExit, match="the settings are not those of cifar10-95-cpu"):
        index.committed(tmp_path)


def test_times_on_two_devices_are_two(index):
    slow = record("seed003", 0, test=0.95)
    fast = replace(slow, seed=1, env={**slow.env, "threads": 8}, seconds_to_result=0.1)
    (*_, row) = index.table({"seed003": [slow, fast]}).splitlines()
    assert "| 1; 0 | 1; 1 | cpu, amx_bf16, 2 threads, bf16; cpu, amx_bf16, 8 threads, bf16 |" in row


def test_the_committed_page_is_what_the_committed_records_make(index):
    assert (RESULTS / "reports.md").read_text() == index.reports_md(RESULTS)
