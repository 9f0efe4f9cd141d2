"""Compare resfit's CIFAR-10 results with others of at most 5,000,000 parameters: one Markdown table, best first.

Rows come from the committed records, reports.json and anchors.json, which gives the source of each figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from resfit.record import RunRecord, summarize
from resfit.report.words import plus_minus

BUDGET = 5_000_000
_HEAD = ("network", "parameters", "test accuracy", "with TTA", "n", "protocol", "source")
_SELECTIONS = {
    "last": "final weights, test set used once",
    "best-val": "best epoch on validation images",
    "best-test": "best epoch on the test set",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network's row, each cell as shown; accuracies in percent, empty if unknown."""

    network: str
    params: str
    plain: str
    tta: str
    n: str
    protocol: str
    source: str

    @property
    def rank(self) -> float:
        """The sort key: the accuracy without test-time augmentation, or with it if only that is known."""
        return float((self.plain or self.tta).split()[0])


def standing(groups: Mapping[str, Sequence[RunRecord]], reports: Path, anchors: Path) -> str:
    """Return the table, from complete runs by recipe and two files with other people's results."""
    systems = json.loads(reports.read_text())["systems"]
    public = json.loads(anchors.read_text())["results"]
    rows = [ours(name, records) for name, records in groups.items() if counts(records[0])]
    rows += [
        reported(system, measure) for system in systems for measure in system["reported"] if measure["on"] == "test"
    ]
    rows += [published(result) for result in public]
    cells = [_HEAD] + [tuple(cell or "–" for cell in astuple(row)) for row in sorted(rows, key=lambda row: -row.rank)]
    head, *body = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([head, "|" + "---|" * len(_HEAD), *body])


def counts(record: RunRecord) -> bool:
    """Return whether a run is on CIFAR-10, within the budget, and did not choose its weights on the test set."""
    return record.data["name"] == "cifar10" and record.params <= BUDGET and not record.peeked


def ours(name: str, records: Sequence[RunRecord]) -> Row:
    """Return the row of a recipe trained with resfit."""
    return Row(
        network=f"**`{name}`**",
        params=f"{records[0].params / 1e6:.2f}M",
        plain=bare_percent([record.test.accuracy for record in records]),
        tta=bare_percent([record.test.accuracy_tta for record in records if record.test.accuracy_tta is not None]),
        n=str(len(records)),
        protocol=f"{records[0].epochs} epochs; {_SELECTIONS[records[0].protocol['selection']]}",
        source="resfit",
    )


def reported(system: Mapping[str, Any], measure: Mapping[str, Any]) -> Row:
    """Return the row of one accuracy of a system from the reports."""
    note = f", {measure['note']}" if "note" in measure else ""
    return Row(
        network=f"report {system['system']}{note}",
        params=f"{system['params'] / 1e6:.2f}M" if system["params"] else "not reported",
        plain=measure["accuracy"],
        tta="",
        n="1",
        protocol=f"{system['epochs']} epochs; {_taken(system['selection'])}",
        source="the five reports",
    )


def _taken(selection: str | None) -> str:
    """Describe how the epoch was chosen; "presumably" where the report's text leaves doubt about the test set."""
    if selection is None:
        return "choice of epoch not reported"
    return f"{'presumably the ' if selection == 'best-test' else ''}{_SELECTIONS[selection]}"


def published(result: Mapping[str, Any]) -> Row:
    """Return the row of a public result; most do not state whether the epoch was chosen on the test set."""
    return Row(
        network=result["network"],
        params=result["params"],
        plain=result.get("accuracy", ""),
        tta=result.get("accuracy_tta", ""),
        n="" if result["n"] is None else str(result["n"]),
        protocol=result["training"],
        source=result["source"],
    )


def bare_percent(values: Sequence[float]) -> str:
    """Return mean ± standard deviation of accuracies, in percent."""
    if not values:
        return ""
    s = summarize(values)
    return plus_minus(s.mean, s.std)
