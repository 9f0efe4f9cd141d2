"""mkdocs hook: the reference pages, made from the code, and the results, made from the records.

Run by `mkdocs build`; nothing that it writes is kept in the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from resfit.cli import make_parser
from resfit.cost import cost
from resfit.fields import to_plain
from resfit.recipe import Recipe, get_recipe, recipe_names

ROOT = Path(__file__).parent.parent
RESULTS = "<!-- results -->"
REPORTS = "<!-- reports -->"
MEASURED = "<!-- measured -->"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {"commands": commands_page(), "recipes": recipes_page(), "fields": fields_page()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is made from records and recipes where a page asks for it."""
    if RESULTS in markdown:
        markdown = markdown.replace(RESULTS, results_table())
    if MEASURED in markdown:
        markdown = markdown.replace(MEASURED, measured_table())
    return markdown.replace(REPORTS, reports_table()) if REPORTS in markdown else markdown


def commands_page() -> str:
    """Every command's help, as it prints it."""
    os.environ["COLUMNS"] = "100"
    parser = make_parser()
    parts = ["# The command line", "As each command's `--help` prints it.", _fenced(parser.format_help())]
    for name, command in _commands(parser).items():
        parts += [f"## resfit {name}", _fenced(command.format_help())]
    return "\n\n".join(parts) + "\n"


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(actions).choices)


def recipes_page() -> str:
    """Every named recipe, with its file."""
    parts = ["# Recipes", _recipe_table(recipe_names(), links=True)]
    for name in recipe_names():
        text = (ROOT / "src" / "resfit" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        parts += [f"## {name}", _fenced(text, "yaml")]
    return "\n\n".join(parts) + "\n"


def fields_page() -> str:
    """Every field of a recipe and of the network in it: its place, type and default, and what its class says."""
    intro = (
        "A recipe is YAML, or `resfit.Recipe`. Every field can also be given to `resfit train` as "
        "`--section.field VALUE`. Fields without a default have to be given."
    )
    parts = ["# Every field of a recipe", intro]
    for place, kind in _sections(Recipe, ""):
        parts.append(f"## `{place}`" if place else "## The recipe")
        parts += [inspect.cleandoc(kind.__doc__ or ""), _table(["field", "type", "default"], list(_fields(kind)))]
    return "\n\n".join(parts) + "\n"


def _sections(kind: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The dataclass at `place` and all within it, each with its place."""
    yield place, kind
    for name, hint in get_type_hints(kind).items():
        for inner in _dataclasses(hint):
            many = "[]" if get_origin(hint) is tuple else ""
            yield from _sections(inner, f"{place}.{name}{many}" if place else f"{name}{many}")


def _dataclasses(hint: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from _dataclasses(part)


def _fields(kind: Any) -> Iterator[list[str]]:
    for field in dataclasses.fields(kind):
        yield [f"`{field.name}`", _type_text(get_type_hints(kind)[field.name]), _default_text(field)]


_SCALARS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "nothing"}


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type_text, arguments))
    if origin is tuple and Ellipsis in arguments:
        return f"list of {_type_text(arguments[0])}"
    if origin is tuple:
        return f"list of {' and '.join(map(_type_text, arguments))}"
    return "section" if dataclasses.is_dataclass(hint) else _SCALARS.get(hint, str(hint))


def _default_text(field: Any) -> str:
    if field.default is dataclasses.MISSING:
        return "–" if field.default_factory is dataclasses.MISSING else "its own"
    if dataclasses.is_dataclass(field.default):
        return "its own"
    return "nothing" if field.default in (None, "") else f"`{json.dumps(to_plain(field.default))}`"


def results_table() -> str:
    """The table of committed records, as the README has it."""
    sys.path.insert(0, str(ROOT / "results"))
    import index

    return str(index.table(index.whole(index.committed())))


def measured_table() -> str:
    """The table of results/reports.md."""
    lines = (ROOT / "results" / "reports.md").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def reports_table() -> str:
    """The reports' recipes with their prices, and where each departs from its report."""
    names = [name for name in recipe_names() if name.startswith("seed")]
    parts = [_recipe_table(names), "### Where a recipe departs from its report"]
    for name in names:
        lines = [f"- {deviation}" for deviation in get_recipe(name).deviations]
        parts += [f"**{name}**", "\n".join(lines)]
    return "\n\n".join(parts)


def _recipe_table(names: list[str], links: bool = False) -> str:
    found = [get_recipe(name) for name in names]
    rows = [
        [f"[`{r.name}`](#{r.name})" if links else f"`{r.name}`", f"{cost(r.spec).params:,}", r.description]
        for r in found
    ]
    return _table(["recipe", "parameters", "what it is"], rows)


def _fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
