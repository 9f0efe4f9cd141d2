"""`resfit evaluate`: score a trained network on its test set."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from resfit.cli.common import DATA_SET, add_data_options, print_table

if TYPE_CHECKING:
    from resfit.record import HumanAgreement, Metrics, Robustness


def add(commands: Any) -> None:
    """Add the `evaluate` command."""
    parser = commands.add_parser(
        "evaluate",
        help="score a trained network on its test set",
        description="Score a trained network on the test set of the data it was trained on.",
    )
    parser.add_argument("target", metavar="TARGET", help="a run folder or a model.safetensors")
    parser.add_argument(
        "--tta",
        action="store_true",
        help="also score with test-time augmentation: the recipe's, or flips and shifts if it has none",
    )
    parser.add_argument("--data", metavar="NAME", help=DATA_SET)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="also score 15 kinds of corrupted images; the result is saved in the run folder, unless the images are "
        "others than the run's own test images",
    )
    parser.add_argument(
        "--human",
        metavar="FILE",
        help="compare with human label counts, such as the .npy file of CIFAR-10H; the result is saved likewise",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_data_options(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from resfit.fields import to_plain
    from resfit.trained import evaluate

    where = {
        "data_dir": options.data_dir,
        "device": options.device,
        "offline": options.offline,
        "data": options.data,
    }
    more = _more(options, where)
    metrics = evaluate(options.target, tta="recipe" if options.tta else "none", **where)
    if options.json:
        print(json.dumps(to_plain({**to_plain(metrics), **more}), indent=1))
        return 0
    _print_metrics(options.target, metrics)
    if "robustness" in more:
        _print_robustness(more["robustness"])
    if "human" in more:
        _print_human(more["human"])
    return 0


def _more(options: argparse.Namespace, where: dict[str, Any]) -> dict[str, Any]:
    """Measure and save the requested corruption and human-agreement scores."""
    from resfit.robustness import score_corruptions, score_humans

    more: dict[str, Any] = {}
    if options.human is not None:
        more["human"] = score_humans(options.target, options.human, **where)
    if options.corruptions:
        tell = None if options.json else partial(print, file=sys.stderr, flush=True)
        more["robustness"] = score_corruptions(options.target, progress=tell, **where)
    return more


def _print_metrics(target: str, metrics: Metrics) -> None:
    scored = sum(one.support for one in metrics.per_class)
    rows = [["images", f"{scored:,}"], ["accuracy", f"{100 * metrics.accuracy:.2f} %"]]
    if metrics.accuracy_tta is not None:
        rows.append(["with test-time augmentation", f"{100 * metrics.accuracy_tta:.2f} %"])
    rows += [["loss", f"{metrics.loss:.4f}"], ["calibration error (ECE)", f"{metrics.ece:.4f}"]]
    if after := metrics.calibrated:
        rows.append([f"loss; ECE at temperature {after.temperature:.3f}", f"{after.loss:.4f}; {after.ece:.4f}"])
    print_table(["test set", target], rows)
    print_table(
        ["class", "precision", "recall", "F1", "images"],
        [
            [c.name, f"{100 * c.precision:.2f} %", f"{100 * c.recall:.2f} %", f"{100 * c.f1:.2f} %", c.support]
            for c in metrics.per_class
        ],
        right=(1, 2, 3, 4),
    )


def _print_robustness(found: Robustness) -> None:
    severities = [f"severity {n}" for n in range(1, len(found.kinds[0].accuracy) + 1)]
    rows = [[kind.group, kind.kind, *(f"{100 * a:.2f} %" for a in kind.accuracy)] for kind in found.kinds]
    print_table(["group", "corruption", *severities], rows, right=tuple(range(2, 2 + len(severities))))
    print(
        f"{found.set}, seed {found.seed}: {100 * found.mean:.2f} % on average, {100 * found.clean:.2f} % without "
        "corruption; not comparable with other sets"
    )


def _print_human(found: HumanAgreement) -> None:
    rows = [
        ["network agrees with humans", f"{100 * found.agreement:.2f} %"],
        ["humans agree with the label", f"{100 * found.human_accuracy:.2f} %"],
        ["cross-entropy against human labels", f"{found.cross_entropy:.4f}"],
        ["entropy of human labels (lower bound)", f"{found.human_entropy:.4f}"],
    ]
    print_table(["human labels", f"{found.images:,} images"], rows)
