"""Run the slow tests and save the latest result of each: python results/slow_tests.py [PYTEST ARGUMENTS ...]

They take hours in total, so they may be run in parts: results/slow-tests.json has each test's outcome and duration, and
the day and commit of its last run. Skipped tests are not saved.
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
    """A pytest plugin that records how each test ended."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.at = {"day": date.today().isoformat(), "commit": environment(pick_device("cpu"))["commit"]}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the outcome: a test fails in any phase, and passes in its call phase."""
        if report.failed or (report.when == "call" and report.passed):
            seconds = round(report.duration, 1)
            self.found[report.nodeid] = {"outcome": report.outcome, "seconds": seconds, **self.at}


def main() -> int:
    """Run the tests and merge the results into the file."""
    results = Results()
    status = pytest.main(["-m", "slow", *sys.argv[1:]], plugins=[results])
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    write_atomic(FILE, json.dumps(dict(sorted({**known, **results.found}.items())), indent=1) + "\n")
    print(f"{len(results.found)} taken over: {FILE}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
