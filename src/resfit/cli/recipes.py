"""`resfit recipes`: list the named recipes."""

from __future__ import annotations

import argparse
import json
from typing import Any

from resfit.cli.common import print_table


def add(commands: Any) -> None:
    """Add the `recipes` command."""
    parser = commands.add_parser("recipes", help="list the named recipes", description="List the named recipes.")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=_recipes)


def _recipes(options: argparse.Namespace) -> int:
    from resfit.cost import cost
    from resfit.recipe import get_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe = get_recipe(name)
        price = cost(recipe.spec)
        rows.append(
            {
                "name": name,
                "data": recipe.data.name,
                "params": price.params,
                "macs": price.macs,
                "budget": recipe.budget,
                "epochs": recipe.train.epochs,
                "description": recipe.description,
                "result": _recorded_result(name),
            }
        )
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print_table(
        ["recipe", "data", "parameters", "MACs", "epochs", "recorded accuracy", "what it is for"],
        [
            [r["name"], r["data"], f"{r['params']:,}", f"{r['macs']:,}", r["epochs"], _result_text(r), r["description"]]
            for r in rows
        ],
        right=(2, 3, 4),
    )
    return 0


def _recorded_result(name: str) -> dict[str, Any] | None:
    """Return the recipe's recorded result shipped with this version, or None."""
    from resfit.shipped import shipped_folder

    file = shipped_folder("recipes") / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    result: dict[str, Any] | None = results.get(name)
    return result


def _result_text(row: dict[str, Any]) -> str:
    result = row["result"]
    if not result:
        return "none yet"
    from resfit.report.words import plus_minus

    tta = "with TTA, " if result["tta"] else ""
    return f"{plus_minus(result['mean'], result['std'])} % ({tta}n={result['n']})"
