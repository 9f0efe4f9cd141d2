"""Generate everything that is derived from the committed records: python results/index.py

Writes results/README.md, results/reports.md, tables of the project's README, the model cards of the published networks,
and the results that `resfit recipes` shows.

`python results/index.py --add RUN ...` first copies the records of finished runs here, without their pictures, which
belong to the data sets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reports import ablation, device, read_systems, reports_page
from standing import bare_percent, standing

from resfit.environment import without_places
from resfit.files import sha256
from resfit.recipe import Recipe, get_recipe
from resfit.record import RunRecord, find_records, group_runs, read_record, summarize
from resfit.report.card import render_card
from resfit.studyrecord import StudyRecord, read_study

HERE = Path(__file__).parent
ROOT = HERE.parent
SHIPPED = ROOT / "src" / "resfit" / "recipes" / "results.json"
RECIPES, STANDING, BUDGETS = "<!-- results -->", "<!-- standing -->", "<!-- budgets -->"  # around generated text


def add(paths: list[str]) -> None:
    """Copy records to results/<recipe>/<seed>.json; those that peeked at the test set to results/<recipe>-peeked."""
    for record in find_records(paths):
        name = f"{record.recipe}-peeked" if record.peeked else record.recipe
        target = HERE / name / f"{record.seed}.json"
        target.parent.mkdir(exist_ok=True)
        env = {**record.env, "command": without_places(record.env["command"])}
        plain = replace(record, samples=(), augmented="", env=env).to_dict()
        text = json.dumps(plain, indent=1) + "\n"
        if target.exists() and target.read_text() != text:
            raise SystemExit(f"error: another record exists ({target}): remove it to replace it with this one")
        target.write_text(text)


def committed(folder: Path = HERE) -> dict[str, list[RunRecord]]:
    """Return the committed records by recipe."""
    files = sorted(folder.glob("*/*.json"), key=lambda file: (file.parent.name, int(file.stem)))
    return group_runs([under_its_name(RunRecord.from_dict(json.loads(file.read_text())), file) for file in files])


def under_its_name(record: RunRecord, file: Path) -> RunRecord:
    """Return a record as a run of the recipe whose folder it is in: the recipe was renamed since.

    Raises SystemExit if their settings differ; the command becomes the one that trains the renamed recipe.
    """
    name = file.parent.name.removesuffix("-peeked")
    if name == record.recipe:
        return record
    recipe = get_recipe(name)
    if Recipe.from_dict(record.config).replace({"name": name, "description": recipe.description}) != recipe:
        raise SystemExit(f"error: the settings are not those of {name} ({file})")
    env = {**record.env, "command": record.env["command"].replace(record.recipe, name)}
    return replace(record, recipe=name, description=recipe.description, config=recipe.to_dict(), env=env)


def whole(groups: dict[str, list[RunRecord]]) -> dict[str, list[RunRecord]]:
    """Return the groups without runs shorter than their recipe; the page about the reports includes these as well."""
    lengths = {name: get_recipe(records[0].recipe).train.epochs for name, records in groups.items()}
    return {
        name: records
        for name, runs in groups.items()
        if (records := [record for record in runs if record.config["train"]["epochs"] >= lengths[name]])
    }


def table(groups: dict[str, list[RunRecord]]) -> str:
    """Return the table of results: one row per recipe with data, size, accuracies, time and device."""
    head = "| recipe | data | parameters | n | test accuracy | with TTA | seconds per run | images/s | device |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for name, records in groups.items():
        first, places = records[0], by_device(records)
        cells = [
            f"`{name}`",
            first.data["name"],
            f"{first.params:,}",
            str(len(records)),
            percent([r.test.accuracy for r in records]) + (" (peeked)" if first.peeked else ""),
            percent([r.test.accuracy_tta for r in records if r.test.accuracy_tta is not None]),
            "; ".join(f"{summarize([r.seconds_to_result for r in runs]).mean:,.0f}" for runs in places.values()),
            "; ".join(f"{summarize([r.images_per_second for r in runs]).mean:,.0f}" for runs in places.values()),
            "; ".join(places),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_device(records: list[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group a recipe's runs by device, as times on different devices cannot be averaged."""
    places: dict[str, list[RunRecord]] = {}
    for record in records:
        places.setdefault(device(record), []).append(record)
    return places


def percent(values: Sequence[float]) -> str:
    """Format mean ± standard deviation in percent."""
    return f"{bare_percent(values)} %" if values else "–"


def shipped(groups: dict[str, list[RunRecord]]) -> dict[str, object]:
    """Return what `resfit recipes` shows for each recipe; runs that peeked at the test set are excluded."""
    results = {}
    for name, records in groups.items():
        if records[0].peeked:
            continue
        s = summarize([record.accuracy for record in records])
        tta = records[0].test.accuracy_tta is not None
        places = "; ".join(by_device(records))
        results[name] = {"mean": s.mean, "std": s.std, "n": s.n, "tta": tta, "device": places}
    return results


def reports_md(folder: Path) -> str:
    """Return the page about the five reports, from reports.json and the records in `folder`."""
    records = [record for runs in committed(folder).values() for record in runs]
    studies = [ablation(read_study(file)) for file in sorted(folder.glob("study-seed*.json"))]
    return "\n".join([reports_page(read_systems(HERE / "reports.json"), records), *studies])


def commands(groups: dict[str, list[RunRecord]]) -> str:
    """Return the commands that started the runs, one line each."""
    return "\n".join(
        f"- `{name}`: `{command}`"
        for name, records in groups.items()
        for command in dict.fromkeys(record.env["command"] for record in records)
    )


def budgets(study: StudyRecord) -> str:
    """Return the table of the budget study: one row per point."""
    lines = ["| budget | parameters | test accuracy | n |", "|---|---|---|---|"]
    for point in study.points:
        if point.test:
            cells = (point.name, f"{point.params:,}", percent(point.test.values), point.test.n)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def other_records(folder: Path = HERE) -> str:
    """Return a list of the other records (exports, prunings, soaks, studies, searches), with their pages."""
    lines = []
    kinds = ("export", "prune", "soak", "study", "tune")
    for file in (path for path in sorted(folder.glob("*.json")) if path.stem.partition("-")[0] in kinds):
        plain = json.loads(file.read_text())
        kind, _, of = file.stem.partition("-")
        about = plain.get("description") if isinstance(plain, dict) else None
        page = f", [page]({file.stem}.html)" if file.with_suffix(".html").exists() else ""
        size = f" ({plain['params']:,} parameters)" if kind == "prune" else ""
        lines.append(f"- [{kind}{f' of {of}' if of else ''}]({file.name}){page}{f': {about}{size}' if about else ''}")
    return "\n".join(lines)


def slow_tests(file: Path = HERE / "slow-tests.json") -> str:
    """Return how many slow tests passed when each was last run, and which failed."""
    last = json.loads(file.read_text())
    days = sorted({result["day"] for result in last.values()})
    failed = [name for name, result in last.items() if result["outcome"] != "passed"]
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    text = f"Slow tests, latest run of each ({when}): {len(last) - len(failed)} of {len(last)} passed"
    return f"{text} ([slow-tests.json](slow-tests.json)){'; failed: ' if failed else ''}{', '.join(failed)}."


def card(folder: Path, groups: dict[str, list[RunRecord]]) -> str:
    """Return the model card of a published network, which also has the results of all runs of its recipe."""
    record = read_record(folder)
    return render_card(record, groups.get(record.recipe, [record]), sha256(folder / "model.safetensors"), "mit")


def pages() -> dict[Path, str]:
    """Return every generated file with its text."""
    groups, readme = whole(committed()), ROOT / "README.md"
    runs = table(groups)
    parts = (
        "# Results",
        "Records of real runs, generated by `python results/index.py`. Means ± standard deviation over n seeds.",
        runs,
        "Commands:",
        commands(groups),
        "The five reports: [reports.md](reports.md). Experiment log: [LOG.md](LOG.md). Other records:",
        other_records(),
        slow_tests(),
    )
    filled = fill(readme.read_text(), RECIPES, runs)
    filled = fill(filled, BUDGETS, budgets(read_study(HERE / "study-budgets.json")))
    return {
        HERE / "README.md": "\n\n".join(parts) + "\n",
        HERE / "reports.md": reports_md(HERE),
        SHIPPED: json.dumps(shipped(groups), indent=1) + "\n",
        readme: fill(filled, STANDING, standing(groups, HERE / "reports.json", HERE / "anchors.json")),
        **{folder / "README.md": card(folder, groups) for folder in sorted((HERE / "models").iterdir())},
    }


def main() -> None:
    """Add records if requested, and regenerate all files."""
    if sys.argv[1:2] == ["--add"]:
        add(sys.argv[2:])
    for path, text in pages().items():
        path.write_text(text)


def fill(page: str, mark: str, text: str) -> str:
    """Return the page with `text` between its two markers."""
    before, _, after = page.split(mark)
    return f"{before}{mark}\n{text}\n{mark}{after}"


if __name__ == "__main__":
    main()
