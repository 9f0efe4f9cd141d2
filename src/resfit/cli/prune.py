"""`resfit prune`: narrow a trained network to a smaller budget and fine-tune it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from resfit.cli.common import RECIPE, REPEAT, add_data_options, print_table
from resfit.interrupt import Interruptible


def add(commands: Any) -> None:
    """Add the `prune` command."""
    parser = commands.add_parser(
        "prune",
        help="narrow a trained network to a smaller budget and fine-tune it",
        description="Remove the least important channels until the network fits the budget, then fine-tune it as a new "
        "run in OUT/<recipe>-<budget>/<seed>. Its report compares the original, the pruned and the "
        "fine-tuned network.",
        usage="resfit prune RUN --budget N [options] [--section.field VALUE ...]",
        epilog="Fine-tuning uses the run's own recipe unless --recipe is given, with the unpruned network as its "
        "only teacher. --train.epochs 20 shortens it but does not scale its milestones, warm-up and patience: set "
        "these as well.",
    )
    parser.add_argument("run_folder", metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "--budget", metavar="N", required=True, help="maximum number of parameters after pruning (500k, 2M)"
    )
    parser.add_argument("--recipe", metavar="RECIPE", help=f"how to fine-tune: {RECIPE} (default: the run's own)")
    parser.add_argument("--no-teacher", action="store_true", help="fine-tune with the labels only")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="parent folder of the results (default: runs)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    add_data_options(parser)
    parser.set_defaults(run=_prune, takes_fields=True)


def _prune(options: argparse.Namespace) -> int:
    from resfit.counts import parse_count
    from resfit.progress import Progress
    from resfit.prune import prune

    with Interruptible(REPEAT), Progress() as progress:
        record = prune(
            options.run_folder,
            budget=parse_count(options.budget),
            recipe=options.recipe,
            overrides=options.overrides,
            out=options.out,
            data_dir=options.data_dir,
            device=options.device,
            offline=options.offline,
            teach=not options.no_teacher,
            observer=progress,
        )
    assert record.pruning is not None
    networks = record.pruning.networks
    heads = [f"batch {t.batch}, {t.threads} thread{'s' if t.threads > 1 else ''}, ms" for t in networks[0].latency]
    print_table(
        ["network", "test accuracy", "parameters", "MACs", *heads],
        [
            [n.name, f"{100 * n.accuracy:.2f} %", f"{n.params:,}", f"{n.macs:,}"]
            + [f"{1000 * t.seconds:.2f}" for t in n.latency]
            for n in networks
        ],
        right=tuple(range(1, 4 + len(heads))),
    )
    print(f"run folder: {options.out / record.recipe / str(record.seed)}")
    return 0
