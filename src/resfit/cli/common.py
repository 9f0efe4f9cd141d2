"""Helpers shared by several commands: help texts, data and scaling options, table printing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from resfit.errors import BadInput

TARGET = "a recipe's name, a recipe or spec YAML file, a run folder, or a model.safetensors"
RECIPE = "a recipe's name or a recipe YAML file"
TWO_BUDGETS = "--fit sets the budget already (--fit): leave --budget out"
DATA_SET = "data set to use if there is no recipe.yaml next to the model: digits, cifar10, cifar100, svhn or folder"
REPEAT = "run the same command again to continue"


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add --data-dir and --offline."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="D",
        help="folder to read the data from or download it to (default: RESFIT_DATA_DIR is searched, then "
        "~/.cache/resfit)",
    )
    parser.add_argument("--offline", action="store_true", help="never access the network (same as RESFIT_OFFLINE=1)")


def add_scale_options(parser: argparse.ArgumentParser) -> None:
    """Add --epochs and --fraction."""
    parser.add_argument("--epochs", type=int, metavar="E", help="number of epochs; schedules are scaled in proportion")
    parser.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        metavar="F",
        help="train on this fraction of the training images (default: 1)",
    )


def check_scale_options(options: argparse.Namespace) -> None:
    """Raise BadInput if --epochs or --fraction is out of range."""
    if options.epochs is not None and options.epochs < 1:
        raise BadInput(f"epochs is {options.epochs} (--epochs): give at least 1")
    if not 0 < options.fraction <= 1:
        raise BadInput(f"fraction is {options.fraction} (--fraction): give a number above 0, at most 1")


def print_table(header: list[str], rows: list[list[Any]], right: tuple[int, ...] = ()) -> None:
    """Print a table to stdout, as wide as its cells need if stdout is not a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for n, name in enumerate(header):
        table.add_column(Text(name), justify="right" if n in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.measure(table).maximum, 200))
    console.print(table)
