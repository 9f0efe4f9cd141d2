"""resfit evaluate: score a trained network."""

from __future__ import annotations

import argparse
import json
from typing import Any

from resfit.cli.words import add_data_options, print_table


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="score a trained network on its test set",
        description="Score a trained network on the test set of the data that it was trained on.",
    )
    parser.add_argument("target", metavar="TARGET", help="a run folder or a model.safetensors")
    parser.add_argument("--tta", action="store_true", help="score with flips and one-pixel shifts as well")
    parser.add_argument("--data", metavar="NAME", help="the data set, for a model outside its run folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_data_options(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from resfit.fields import to_plain
    from resfit.run import evaluate

    metrics = evaluate(
        options.target,
        tta="flip+shift" if options.tta else "none",
        data_dir=options.data_dir,
        device=options.device,
        offline=options.offline,
        data=options.data,
    )
    if options.json:
        print(json.dumps(to_plain(metrics), indent=1))
        return 0
    rows = [["accuracy", f"{100 * metrics.accuracy:.2f} %"]]
    if metrics.accuracy_tta is not None:
        rows.append(["with test-time augmentation", f"{100 * metrics.accuracy_tta:.2f} %"])
    rows += [["loss", f"{metrics.loss:.4f}"], ["calibration error (ECE)", f"{metrics.ece:.4f}"]]
    print_table(["test set", options.target], rows)
    print_table(
        ["class", "precision", "recall", "F1", "images"],
        [
            [c.name, f"{100 * c.precision:.2f} %", f"{100 * c.recall:.2f} %", f"{100 * c.f1:.2f} %", c.support]
            for c in metrics.per_class
        ],
        right=(1, 2, 3, 4),
    )
    return 0
