"""resfit card: a model card for a run's folder."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "card",
        help="write a model card into a run's folder, ready to be published",
        description="Write README.md, a model card as the Hugging Face hub reads it, beside a run's model.safetensors. "
        "The licence is yours to decide: it stands as unknown.",
    )
    parser.add_argument("run_folder", metavar="RUN", help="the folder of a finished run")
    parser.set_defaults(run=_card)


def _card(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from resfit.card import write_card

    print(f"{write_card(options.run_folder)}: decide on its licence before you publish it")
    return 0
