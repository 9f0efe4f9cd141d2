"""`resfit report`: write one HTML page about one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from resfit.errors import BadInput


def add(commands: Any) -> None:
    """Add the `report` command."""
    parser = commands.add_parser(
        "report",
        help="write a self-contained HTML page about one or more runs",
        description="Write one self-contained HTML page from the records of one or more runs.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders, or folders that contain several")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page to write (default: report.html)"
    )
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from resfit.record import find_records
    from resfit.report import write_report
    from resfit.report.groups import unique

    records = unique(find_records(options.runs))  # the same runs as the page shows
    if options.out.is_file() and not _is_report(options.out.read_bytes()):
        raise BadInput(f"the file exists and is not a resfit report ({options.out}): give another --out")
    print(f"{write_report(records, options.out)}: {len(records)} run{'s' if len(records) > 1 else ''}")
    return 0


def _is_report(page: bytes) -> bool:
    """Return whether a file is a report by resfit; earlier versions name their generator only in the footer."""
    return b'content="resfit report"' in page or (b'name="generator"' not in page and b"Made by resfit" in page)
