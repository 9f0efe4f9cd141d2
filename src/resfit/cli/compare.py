"""`resfit compare`: compare the mean accuracies of recipes."""

from __future__ import annotations

import argparse
import json
from typing import Any

from resfit.cli.common import print_table
from resfit.errors import BadInput


def add(commands: Any) -> None:
    """Add the `compare` command."""
    parser = commands.add_parser(
        "compare",
        help="compare the mean accuracies of recipes, with confidence intervals",
        description="Compare recipes by their runs: mean and deviation of each, and its difference from the first.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, or folders that contain several")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from resfit.fields import to_plain
    from resfit.record import compare, find_records
    from resfit.report.groups import group, unique
    from resfit.report.words import plus_minus

    records = unique(find_records(options.runs))
    if len(data := group(records)) > 1:
        names = ", ".join(part.name for part in data)
        raise BadInput(f"the runs are on different data sets (RUN: {names}): compare runs on one data set")
    what = "accuracy with TTA" if data[0].tta else "accuracy"  # only if every run has TTA accuracy
    given = {id(record): place for place, record in enumerate(records)}
    groups = sorted(data[0].recipes, key=lambda recipe: min(given[id(run)] for run in recipe.runs))
    found = {recipe.label: data[0].ranked_by(recipe) for recipe in groups}
    first = groups[0].label
    differences = {name: compare(found[first].values, found[name].values) for name in found if name != first}
    if options.json:
        repeated = {recipe.label: recipe.repeated for recipe in groups if recipe.repeated}
        facts = {"baseline": first, "measure": what, "runs": found, "differences": differences, "repeated": repeated}
        print(json.dumps(to_plain(facts), indent=1))
        return 0
    rows = []
    for recipe in groups:
        s = found[recipe.label]
        label = f"{recipe.label} (peeked)" if recipe.peeked else recipe.label
        rows.append([label, s.n, f"{plus_minus(s.mean, s.std)} %", _difference_text(differences.get(recipe.label))])
    print_table(["runs", "n", f"test {what}", f"difference from {first} (95 % interval)"], rows, right=(1,))
    for recipe in groups:
        if recipe.repeated:
            seeds = ", ".join(map(str, recipe.repeated))
            print(f"{recipe.label}: runs of the same seed are not independent (seed {seeds}); n and intervals are off")
    return 0


def _difference_text(difference: Any) -> str:
    from resfit.report.words import p_value

    if difference is None:
        return "baseline"
    text = f"{100 * difference.difference:+.2f} points"
    if difference.interval is None:
        return f"{text} (no interval: each needs at least two runs with different results)"
    low, high = (100 * bound for bound in difference.interval)
    p = p_value(difference.p_value)
    return f"{text} ({low:+.2f} to {high:+.2f}, p {p if p.startswith('<') else '= ' + p})"
