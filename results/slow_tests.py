"""Runs the slow tests and keeps the last result of each: python results/slow_tests.py [PYTEST'S OWN WORDS ...]

They take hours in all, so they may be run in parts: results/slow-tests.json has every test's outcome, how long it took,
and the day and commit of its last run. Skipped ones are not kept, as they say nothing.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from resfit.device import pick_device
from resfit.environment import environment
from resfit.files import write_atomic

FILE = Path(__file__).parent / "slow-tests.json"


class Results:
    """A pytest plugin that takes down how each test ended."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.at = {"day": date.today().isoformat(), "commit": environment(pick_device("cpu"))["commit"]}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test fails in any of its phases, and passes in the one between."""
        if report.failed or (report.when == "call" and report.passed):
            seconds = round(report.duration, 1)
            self.found[report.nodeid] = {"outcome": report.outcome, "seconds": seconds, **self.at}


def main() -> int:
    """Run, and take the results over."""
    results = Results()
    status = pytest.main(["-m", "slow", *sys.argv[1:]], plugins=[results])
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    write_atomic(FILE, json.dumps(dict(sorted({**known, **results.found}.items())), indent=1) + "\n")
    print(f"{len(results.found)} taken over: {FILE}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
