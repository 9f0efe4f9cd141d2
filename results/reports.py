"""Compare the five reports' figures with resfit's measurements: a Markdown page from reports.json and records.

A report's protocol takes the accuracy of its best epoch, in some reports on the test set; such runs are marked as
peeked. resfit's protocol scores the test set once, with weights chosen without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from resfit.cost import cost
from resfit.recipe import get_recipe
from resfit.record import RunRecord, group_runs, summarize
from resfit.report.words import plus_minus, processor, thread_count
from resfit.studyrecord import StudyRecord

MISSING = "not measured yet"
_HEAD = (
    "report",
    "recipe",
    "parameters reported",
    "of the recipe",
    "accuracy reported",
    "measured by the report's protocol",
    "measured by resfit's",
    "epochs",
    "device",
    "command",
)
_INTRO = """# The five reports

Made by `python results/index.py` from `reports.json` (what the reports say, each figure with its source) and the
committed records. Accuracies are without test-time augmentation; means ± deviation over n runs. The report's protocol
takes its best epoch: "peeked" marks those that were chosen on the test set itself, so that the figure is too high. By
resfit's the test set is scored once, with weights that were chosen without it. In a cell with two lines the first
follows the report's protocol and the last resfit's. A run's command names all that was changed: `--data.val 0` trains
on all 50,000 images, the others on 45,000; the milestones of 003 were set by hand (in proportion they would be 4 and
8); a run that was resumed has the command that resumed it.
"""


def reports_page(systems: Sequence[dict[str, Any]], records: Sequence[RunRecord]) -> str:
    """Return the page: one row per system, and the sources of the reported figures."""
    rows = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    rows += ["| " + " | ".join(row(system, records)) + " |" for system in systems]
    sources = [f"- {system['system']}: {system['source']}" for system in systems]
    return "\n".join([_INTRO, *rows, "", "Sources:", "", *sources, ""])


def ablation(study: StudyRecord) -> str:
    """Return a table of a study that repeats a report's ablation, with the length it was shortened to."""
    rows = ["| " + " | ".join(("point", "validation", "test")) + " |", "|---|---|---|"]
    for point in study.points:
        if point.accuracy is not None and point.test is not None:
            means = (mean(point.accuracy.values), mean(point.test.values))
            rows.append("| " + " | ".join((point.name, *means)) + " |")
    length = f"{study.epochs} epochs on {study.fraction:.0%} of the images"
    name = f"study-{study.study}"
    return "\n".join([f"## {study.study}", "", f"{study.description}; {length} ([page]({name}.html)).", "", *rows, ""])


def read_systems(path: Path) -> list[dict[str, Any]]:
    """Read the reported figures."""
    systems: list[dict[str, Any]] = json.loads(path.read_text())["systems"]
    return systems


def row(system: dict[str, Any], records: Sequence[RunRecord]) -> list[str]:
    """Return the cells of one system."""
    mine = [record for record in records if record.recipe == system["recipe"] and record.data["name"] == "cifar10"]
    recipe = get_recipe(system["recipe"])
    own = chosen(record for record in mine if record.protocol["selection"] == system["selection"])
    ours = chosen(record for record in mine if not record.peeked)
    runs = own if own == ours else own + ours
    return [
        system["system"],
        f"`{system['recipe']}`",
        count(system["params"]),
        count(cost(recipe.spec).params),
        lines(map(reported, system["reported"])),
        by_the_report(system, own),
        mean([record.test.accuracy for record in ours]),
        lines(length(record, system["epochs"]) for record in runs),
        lines(map(device, runs)),
        lines(f"`{record.env['command']}`" for record in runs),
    ]


def chosen(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the runs of one of several settings: the one trained longest, and of these the one with the most runs."""
    groups = group_runs(list(records)).values()
    return max(groups, key=lambda runs: (runs[0].config["train"]["epochs"], len(runs)), default=[])


def by_the_report(system: dict[str, Any], own: Sequence[RunRecord]) -> str:
    """Return the measures that the report gives, over runs that follow its protocol."""
    if system["selection"] is None:
        return "the report does not say how"
    measures = {measure["on"]: None for measure in system["reported"]}
    mark = ", peeked" if system["selection"] == "best-test" else ""
    values = {
        "test": [record.test.accuracy for record in own],
        "val": [record.val.accuracy for record in own if record.val is not None],
    }
    return lines(mean(values[on], f"{on}{mark}") for on in measures) if own else MISSING


def reported(measure: dict[str, Any]) -> str:
    """Format an accuracy as reported."""
    facts = ", ".join(filter(None, (measure["on"], measure.get("note"))))
    return f"{measure['accuracy']} %" + (f" ({facts})" if facts else "")


def mean(values: Sequence[float], what: str = "") -> str:
    """Format mean ± standard deviation in percent, what was measured, and the number of values."""
    if not values:
        return MISSING
    s = summarize(values)
    return f"{plus_minus(s.mean, s.std)} % ({what + ', ' if what else ''}n={s.n})"


def length(record: RunRecord, reported_epochs: int) -> str:
    """Return the number of epochs trained of those reported, and whether and how the training was shortened."""
    told = f"{record.epochs} of {reported_epochs}"
    if record.epochs >= reported_epochs:
        return f"{told}, full length"
    asked = record.config["train"]["epochs"]
    how = ["shortened"] if asked < reported_epochs else []
    how += ["stopped early by its own rule"] if record.epochs < asked else []
    return ", ".join([told, *how])


def device(record: RunRecord) -> str:
    """Return the GPU, or the CPU with its fastest feature, threads and precision."""
    env = record.env
    if env["gpu"]:
        return str(env["gpu"])
    fastest = (env["cpu_features"] or ["–"])[-1]
    return f"{processor(record)}, {fastest}, {thread_count(env['threads'])}, {record.precision}"


def count(value: int | None) -> str:
    """Format a number of parameters."""
    return "not reported" if value is None else f"{value:,}"


def lines(cells: Iterable[str]) -> str:
    """Join distinct values into one cell."""
    return "<br>".join(dict.fromkeys(cells)) or MISSING
