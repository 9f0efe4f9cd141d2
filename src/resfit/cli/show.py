"""`resfit show`: print parameters, MACs and activation memory of a network, layer by layer."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from resfit.cli.common import TARGET, TWO_BUDGETS, print_table
from resfit.errors import BadInput


def add(commands: Any) -> None:
    """Add the `show` command."""
    parser = commands.add_parser(
        "show",
        help="show the layers, parameters and MACs of a network",
        description="Show a network's layers, its parameters, MACs and activation memory, and whether it fits the "
        "budget. The network is not built.",
    )
    parser.add_argument("target", metavar="TARGET", help=TARGET)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--budget", metavar="N", help="budget to compare with, in parameters (500k, 5M)")
    parser.add_argument("--fit", metavar="N", help="first scale the widths to fill this budget, as train --fit does")
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    from resfit.budget import judge, require_fitted_spec
    from resfit.cost import cost
    from resfit.counts import parse_count
    from resfit.fields import to_plain
    from resfit.target import find_target

    target = find_target(options.target)
    budget = parse_count(options.budget) if options.budget is not None else target.budget
    if options.fit is not None:
        if options.budget is not None:
            raise BadInput(TWO_BUDGETS)
        budget = parse_count(options.fit, "--fit")
        target = replace(target, spec=require_fitted_spec(target.spec, budget, target.name))
    price, verdict = cost(target.spec), judge(target.spec, budget)
    if options.json:
        facts = {
            "name": target.name,
            "params": price.params,
            "frozen": price.frozen,
            "macs": price.macs,
            "activation_bytes": price.activation_bytes,
            "budget": budget,
            "fits": verdict.fits,
            "spec": target.spec.to_dict(),
            "layers": [{**to_plain(layer), "activation_bytes": layer.activation_bytes} for layer in price.layers],
        }
        print(json.dumps(facts, indent=1))
        return 0
    print_table(
        ["layer", "kind", "output", "parameters", "MACs", "KB"],
        [
            [
                layer.name,
                layer.kind,
                "x".join(map(str, layer.shape)),
                f"{layer.params:,}",
                f"{layer.macs:,}",
                f"{layer.activation_bytes / 1000:,.1f}",
            ]
            for layer in price.layers
        ],
        right=(3, 4, 5),
    )
    print(f"{target.name}: {verdict}")
    print(f"{price.macs:,} MACs and {price.activation_bytes / 1e6:.2f} MB of activations (fp32) for one image")
    if price.frozen:
        print(f"plus {price.frozen:,} frozen filter values")
    return 0
