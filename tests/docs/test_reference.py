"""The generated reference: every field, every public name and every file is in it, and nothing that does not exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import resfit
from helpers.places import ROOT
from resfit.cli import main
from resfit.errors import ResfitError
from resfit.export import FORMATS
from resfit.fields import Config
from resfit.recipe import Recipe
from resfit.record import EXPORTS, RunRecord, write_summary


def load_reference() -> ModuleType:
    """docs/reference.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "docs" / "reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = load_reference()
KINDS = list({**REFERENCE.by_kind(Recipe), **REFERENCE.by_kind(RunRecord)})


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return REFERENCE.pages()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_section_explains_every_field_and_no_other(kind: Any) -> None:
    general, meanings = REFERENCE.documented(kind)
    assert general and "Attributes" not in general
    assert not issubclass(kind, Config) or meanings
    if meanings:
        assert list(meanings) == [field.name for field in dataclasses.fields(kind)]  # in the order of the fields
    assert not [name for name, meaning in meanings.items() if not meaning.endswith(".")]


def test_configs_and_records_are_all_looked_at() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert names >= {"NetSpec", "ShortcutSpec", "DistillConfig", "SamConfig", "Recipe", "EpochPoint", "ExportRecord"}
    own = {kind.__name__ for kind in Config.__subclasses__() if kind.__module__ in ("resfit.spec", "resfit.recipe")}
    assert own <= names


def test_continued_lines_are_joined() -> None:
    class Example:
        """What it is.

        And more of it.

        Attributes:
            one: A word: another
                and a third.
            two: Another.
        """

    found = REFERENCE.documented(Example)
    assert found == ("What it is.\n\nAnd more of it.", {"one": "A word: another and a third.", "two": "Another."})


def test_every_meaning_is_on_its_page(pages: dict[str, str]) -> None:
    for page, root in (("fields", Recipe), ("record", RunRecord)):
        for kind in REFERENCE.by_kind(root):
            for name, meaning in REFERENCE.documented(kind)[1].items():
                rows = [row for row in pages[page].splitlines() if row.startswith(f"| `{name}` |")]
                assert any(row.endswith(f"| {meaning} |") for row in rows), f"{kind.__name__}.{name}"


def test_tables_are_whole_and_no_text_is_taken_for_html(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
        for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, f"{name}: {table}"
            assert all(row.endswith("|") for row in table.splitlines())
        assert "<" not in re.sub(r"`[^`]*`", "", text), name


def test_every_public_name_is_there_once(pages: dict[str, str]) -> None:
    assert sorted(re.findall(r"^### `(\w+)`$", pages["python"], re.MULTILINE)) == sorted(resfit.__all__)
    assert "override: bool = False,\n" in pages["python"]
    assert "| `epoch_ended(point: EpochPoint) -> None` |" in pages["python"]


def test_every_file_that_a_run_leaves_is_there(pages: dict[str, str], tiny: Recipe, tmp_path: Path) -> None:
    record = resfit.train(tiny.replace({"train.epochs": 1}), out=tmp_path)
    write_summary([record], tmp_path / "tiny")
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert found >= {"record.json", "state.previous.pt", "summary.json"}
    for name in {*found, EXPORTS, *(f"model{each.suffix}" for each in FORMATS.values())}:
        assert re.search(rf"[`/]{re.escape(name)}`", pages["record"]), name
    for name, told in {"env": record.env, "data": record.data, "protocol": record.protocol}.items():
        meaning = REFERENCE.documented(RunRecord)[1][name]
        assert not [key for key in told if f"`{key}`" not in meaning], name


def test_every_exit_status_and_variable_is_there(pages: dict[str, str]) -> None:
    lines = [line for path in (ROOT / "src").rglob("*.py") for line in path.read_text().splitlines()]
    read = {name for line in lines if "environ" in line for name in re.findall(r'"([A-Z][A-Z_]+)"', line)}
    assert read >= {"RESFIT_DATA_DIR", "CXX"}
    for name in {*read, "OMP_NUM_THREADS"}:
        assert f"`{name}`" in pages["commands"], name
    statuses = {0, 130, 143, *(kind.exit_code for kind in (ResfitError, *ResfitError.__subclasses__()))}
    assert re.findall(r"^\| `(\d+)` \|", pages["commands"], re.MULTILINE) == [str(n) for n in sorted(statuses)]
    assert main(["show", "nothing-of-that-name"]) == resfit.BadInput.exit_code == 2
