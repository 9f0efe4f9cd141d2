"""`resfit card`: write a model card into a run folder."""

from __future__ import annotations

import argparse
import re
from typing import Any

from resfit.errors import BadInput


def add(commands: Any) -> None:
    """Add the `card` command."""
    parser = commands.add_parser(
        "card",
        help="write a model card into a run folder, for publishing",
        description="Write README.md, a model card in the format of the Hugging Face hub, next to a run's "
        "model.safetensors. Choosing the licence is up to you.",
    )
    parser.add_argument("run_folder", metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="licence identifier of the hub: mit, cc-by-4.0 ... (default: unknown)",
    )
    parser.set_defaults(run=_card)


def _card(options: argparse.Namespace) -> int:
    from resfit.report.card import write_card

    if not re.fullmatch(r"[A-Za-z0-9.-]+", options.license):
        raise BadInput(
            f"{options.license!r} is not a licence identifier (--license): give one such as mit or apache-2.0"
        )
    card = write_card(options.run_folder, options.license)
    print(card if options.license != "unknown" else f"{card}: choose a licence before you publish it")
    return 0
