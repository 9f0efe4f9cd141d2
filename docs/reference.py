"""mkdocs hook: generate the reference pages from the code, and the result tables from the records.

Used by `mkdocs build`; nothing that it writes is committed.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import resfit
from resfit.cli import make_parser
from resfit.cost import cost
from resfit.fields import to_plain
from resfit.recipe import Recipe, get_recipe, recipe_names
from resfit.record import RunRecord

ROOT = Path(__file__).parent.parent
RESULTS = "<!-- results -->"
REPORTS = "<!-- reports -->"
MEASURED = "<!-- measured -->"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def pages() -> dict[str, str]:
    """Return every generated page, in Markdown, by name."""
    return {
        "commands": commands_page(),
        "recipes": recipes_page(),
        "fields": fields_page(),
        "record": record_page(),
        "python": python_page(),
    }


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers in a page by tables made from records and recipes."""
    if RESULTS in markdown:
        markdown = markdown.replace(RESULTS, results_table())
    if MEASURED in markdown:
        markdown = markdown.replace(MEASURED, measured_table())
    return markdown.replace(REPORTS, reports_table()) if REPORTS in markdown else markdown


_EXIT_STATUSES = {
    "0": "The command did what it was asked.",
    "1": "A run failed, such as by a loss that is not finite or a full disk; of many runs at least one. For `predict` "
    "an image could not be read. Or there is an error in resfit itself.",
    "2": "What was given cannot be used: an option, a recipe, data, a file.",
    "130": "Stopped by SIGINT (Ctrl-C). Runs have saved their state by then, and the last line says how to go on.",
    "143": "Stopped by SIGTERM, likewise.",
}

_ENVIRONMENT = {
    "RESFIT_DATA_DIR": "Where data is looked for, after `--data-dir` and before the cache folder.",
    "RESFIT_OFFLINE": "`1`: open no socket, as with `--offline`.",
    "RESFIT_KERNELS": "`0`: use none of resfit's kernels for CPUs; torch then computes everything.",
    "XDG_CACHE_HOME": "The folder that holds the cache folder, `resfit` (else `~/.cache`). In the cache are downloaded "
    "data, decoded image folders and compiled kernels.",
    "CXX": "The C++ compiler of the kernels, with options if need be (else `c++` or `g++`).",
    "OMP_NUM_THREADS": "Read by torch: the CPU threads of a run (else it takes all cores). Several runs at a time, by "
    "`--workers` or on Ray, share the cores instead.",
    "RAY_USAGE_STATS_ENABLED": "Read by Ray: with `--ray`, resfit sets it to `0` unless it is set, so that no usage is "
    "reported to Ray's makers.",
    "TORCHELASTIC_RUN_ID, WORLD_SIZE, LOCAL_WORLD_SIZE, LOCAL_RANK": "Set by torchrun. They tell a process that it is "
    "one of several.",
}


def commands_page() -> str:
    """Return each command's help text, the exit statuses and the environment variables."""
    os.environ["COLUMNS"] = "100"
    parser = make_parser()
    parts = ["# The command line", "As each command's `--help` prints it.", _fenced(parser.format_help())]
    parts += ["## Exit statuses", _names_table(["status", "meaning"], _EXIT_STATUSES)]
    parts += ["## Environment variables", _names_table(["variable", "meaning"], _ENVIRONMENT)]
    for name, command in _commands(parser).items():
        parts += [f"## resfit {name}", _fenced(command.format_help())]
    return "\n\n".join(parts) + "\n"


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(actions).choices)


def recipes_page() -> str:
    """Return every named recipe, with its file."""
    parts = ["# Recipes", _recipe_table(recipe_names(), links=True)]
    for name in recipe_names():
        text = (ROOT / "src" / "resfit" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        parts += [f"## {name}", _fenced(text, "yaml")]
    return "\n\n".join(parts) + "\n"


def fields_page() -> str:
    """Return every field of a recipe, including its network: path, type, default and meaning."""
    intro = (
        "A recipe is YAML, or `resfit.Recipe`. Every field can also be given to `resfit train` as "
        "`--section.field VALUE`, as in `--optim.lr 0.05` or `--spec.stages.0.channels 32`. `[number, …]` is a list of "
        "any length. A field without a default (–) has to be given; *see below* stands for a section with defaults of "
        "its own, and *none* for `null` or an empty text."
    )
    tables = _field_tables(Recipe, "The recipe", ["field", "type", "default", "meaning"])
    return "\n\n".join(["# Every field of a recipe", intro, *tables]) + "\n"


_RUN_FILES = {
    "recipe.yaml": "The resolved recipe, with every override; `resfit train` takes it like any other. A few fields are "
    "left out where they have their default.",
    "record.json": "All numbers, accuracies as fractions; [the fields](#the-record) are below. Some are left out where "
    "they are `null` or empty, and a checksum, `digest`, is added. The file is written last: a folder with one is "
    "complete.",
    "metrics.jsonl": "The training curve while it grows: one line for each epoch, with the fields of `curve[]`.",
    "model.safetensors": "The selected weights, with spec, class names, normalization and temperature: all that "
    "`resfit.load` needs.",
    "state.pt": "The state that an interrupted run goes on from. It may be deleted once the run is finished.",
    "state.previous.pt": "The state saved before it, in case that one is damaged. It may be deleted likewise.",
    "state.damaged.pt": "A state that could not be read, where there was one.",
    "report.html": "The record as one page, which needs no other file.",
}

_LATER_FILES = {
    "robustness.json": "`resfit evaluate RUN --corruptions`: accuracy on corrupted images.",
    "human.json": "`resfit evaluate RUN --human FILE`: agreement with people's labels.",
    "model.onnx, model.int8.onnx, model.pt2, model.bf16.safetensors, model.fp32.safetensors": "`resfit export RUN "
    "--format` onnx, int8, torch, safetensors or safetensors-fp32: the network, unless `--out` names another file.",
    "export.json": "`resfit export`: a list of what was measured of each export. It lies beside the exported files.",
    "README.md": "`resfit card RUN`: a model card.",
    "pruned.safetensors": "`resfit prune`: the pruned network ahead of its fine-tuning, in the folder of that run.",
    "tensorboard/": "`resfit train --log tensorboard`: the curves for TensorBoard.",
    "mlflow.db, mlflow_run_id.txt": "`resfit train --log mlflow`: the curves for MLflow, unless `mlflow=URI` sends "
    "them elsewhere, and the number by which a resumed run finds them again.",
}

_OTHER_FILES = {
    "OUT/RECIPE/summary.json": "`resfit train`, once two seeds of a recipe are finished: number of runs, mean, "
    "standard deviation, 95 % t-interval of the mean, and every value of accuracy, seconds and images per second.",
    "OUT/STUDY/study.json, OUT/STUDY/report.html": "`resfit study`: the comparison of its points, and its page. The "
    "run folders are `OUT/STUDY/POINT/SEED`.",
    "OUT/RECIPE-tune/tune.json, OUT/RECIPE-tune/report.html": "`resfit tune`: all trials of the search, and its page.",
    "OUT/RECIPE-tune/best.yaml": "`resfit tune`, once a trial is complete: the recipe with the best settings, at full "
    "length.",
    "OUT/RECIPE-tune/journal.log": "`resfit tune`: the trials, from which a repeated command goes on; with `--storage` "
    "they are kept elsewhere.",
}


def record_page() -> str:
    """Return the files that runs and other commands write, and every field of a record."""
    columns = ["file", "what it is"]
    parts = ["# What a run leaves", "Each run has a folder of its own, `OUT/RECIPE/SEED`, such as `runs/digits/0`."]
    parts += [_names_table(columns, _RUN_FILES)]
    parts += ["## Added to the folder on request", _names_table(columns, _LATER_FILES)]
    parts += ["## Written outside of run folders", _names_table(columns, _OTHER_FILES)]
    return "\n\n".join([*parts, *_field_tables(RunRecord, "The record", ["field", "type", "meaning"])]) + "\n"


_PUBLIC = {
    "Train and score": ("train", "Observer", "evaluate", "predict"),
    "Networks": ("NetSpec", "cost", "judge", "design", "Design", "build", "load", "save", "transform"),
    "Recipes": ("get_recipe", "recipe_names", "Recipe", "fitted", "scaled"),
    "Records": ("read_record", "RunRecord", "summarize", "compare"),
    "Errors": ("ResfitError", "BadInput", "RunFailed"),
    "Version": ("__version__",),
}


def python_page() -> str:
    """Return every public name with its signature and docstring."""
    parts = ["# In Python", "What `import resfit` offers. [In your own program](../python.md) shows it at work."]
    for title, names in _PUBLIC.items():
        parts.append(f"## {title}")
        for name in names:
            parts += [f"### `{name}`", *_public(name)]
    return "\n\n".join(parts) + "\n"


def _public(name: str) -> Iterator[str]:
    thing = getattr(resfit, name)
    if not callable(thing):
        yield f"The installed version, such as `{thing}`."
        return
    yield _fenced(f"resfit.{_signature(name, thing)}", "python")
    yield documented(thing)[0]
    if page := {Recipe: "fields.md", resfit.NetSpec: "fields.md#spec", RunRecord: "record.md#the-record"}.get(thing):
        yield f"[Its fields]({page})."
    if isinstance(thing, type) and (rows := list(_members(thing))):
        yield _table(["member", "what it is"], rows)


def _members(kind: type) -> Iterator[list[str]]:
    """Yield the methods and properties that a class itself defines."""
    for name, member in vars(kind).items():
        if not name.startswith("_") and isinstance(member, types.FunctionType | classmethod | property):
            text = name if isinstance(member, property) else _signature(name, getattr(kind, name))
            yield [f"`{text}`", " ".join(inspect.getdoc(member).split())]


def _signature(name: str, thing: Any) -> str:
    """Return NAME(PARAMETERS) -> RESULT, with one line per parameter if one line would be too long."""
    signature, words = inspect.signature(thing), []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        if parameter.name != "self":
            words.append(_parameter(parameter))
    result = "" if isinstance(thing, type) else f" -> {signature.return_annotation}"
    text = f"{name}({', '.join(words)}){result}"
    if len(text) > 100:
        text = f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){result}"
    return text.replace("'", '"')


def _parameter(parameter: inspect.Parameter) -> str:
    default, text = parameter.default, f"{parameter.name}: {parameter.annotation}"
    if default is parameter.empty:
        return text
    return f"{text} = {type(default).__name__}()" if dataclasses.is_dataclass(default) else f"{text} = {default!r}"


def documented(kind: Any) -> tuple[str, dict[str, str]]:
    """Split a dataclass's docstring into its general text and its Attributes section, by field, one line each."""
    general, _, section = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:\n")
    entries = re.sub(r"\n\s{2,}", " ", textwrap.dedent(section)).splitlines()  # join continuation lines
    return general, dict(entry.split(": ", 1) for entry in entries)


def _field_tables(kind: Any, title: str, columns: list[str]) -> Iterator[str]:
    """Yield for `kind`, called `title`, and every dataclass within it: a heading, a general text, a table of fields."""
    for inner, places in by_kind(kind).items():
        general, meanings = documented(inner)
        hints = get_type_hints(inner)
        rows = [
            {
                "field": f"`{field.name}`",
                "type": _type_text(hints[field.name]),
                "default": _default_text(field),
                "meaning": meanings.get(field.name, ""),
            }
            for field in dataclasses.fields(inner)
        ]
        yield f"## {', '.join(f'`{place}`' for place in places) if any(places) else title}"
        yield general
        yield _table(columns, [[row[column] for column in columns] for row in rows])


def by_kind(kind: Any) -> dict[Any, list[str]]:
    """Return a dataclass and all dataclasses within it, with the paths where each occurs; the outermost's is empty."""
    found: dict[Any, list[str]] = {}
    for place, inner in _sections(kind, ""):
        found.setdefault(inner, []).append(place)
    return found


def _sections(kind: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the dataclass at `place` and all dataclasses within it, with their paths."""
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


_SCALARS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "`null`"}


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(part) for part in arguments if part is not int or float not in arguments)
    if origin is tuple:
        return f"[{', '.join('…' if part is Ellipsis else _type_text(part) for part in arguments)}]"
    if origin is dict:
        return "mapping"
    return "section" if dataclasses.is_dataclass(hint) else _SCALARS.get(hint, str(hint))


def _default_text(field: Any) -> str:
    if field.default is dataclasses.MISSING:
        return "–"
    if dataclasses.is_dataclass(field.default):
        return "see below"
    return "none" if field.default in (None, "") else f"`{json.dumps(to_plain(field.default))}`"


def results_table() -> str:
    """Return the table of committed records, as in the README."""
    sys.path.insert(0, str(ROOT / "results"))
    import index

    return str(index.table(index.whole(index.committed())))


def measured_table() -> str:
    """Return the table of results/reports.md."""
    lines = (ROOT / "results" / "reports.md").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def reports_table() -> str:
    """Return the reports' recipes with their parameters, and where each deviates from its report."""
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


def _names_table(header: list[str], meanings: dict[str, str]) -> str:
    """Return a table of names (several may be separated by commas) and their meanings."""
    return _table(header, [[f"`{names.replace(', ', '`, `')}`", text] for names, text in meanings.items()])


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
