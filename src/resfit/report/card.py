"""Model cards: write a README.md into a run folder so that it can be published on the Hugging Face Hub as is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from resfit.errors import BadInput
from resfit.files import sha256, write_atomic
from resfit.record import RunRecord, read_record, runs_alike, summarize
from resfit.report.figures import tested, wilson
from resfit.report.page import environment
from resfit.report.words import data_name

# Names of the data sets on the hub. Other data sets are not linked.
_HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "svhn": "ufldl-stanford/svhn"}


def write_card(run: str | Path, licence: str = "unknown") -> Path:
    """Write README.md into a finished run's folder and return its path; `licence` is a licence identifier of the hub.

    Raises BadInput if the folder already has a README.md, or has no record or model.
    """
    folder = Path(run)
    card = folder / "README.md"
    if card.exists():
        raise BadInput(f"a README.md already exists ({card}): move it away to write a new one")
    record = read_record(folder)
    model = folder / "model.safetensors"
    if not model.is_file():
        raise BadInput(f"no model.safetensors ({folder}): give the folder of a finished run")
    return write_atomic(card, render_card(_published(record), _runs_beside(record, folder), sha256(model), licence))


def _runs_beside(record: RunRecord, folder: Path) -> list[RunRecord]:
    """Return the finished runs of the same recipe that differ only in seed and machine, `record` included, by seed."""
    found = {run.seed: run for run in runs_alike(folder.resolve().parent, record)} | {record.seed: record}
    return [found[seed] for seed in sorted(found)]


def _published(record: RunRecord) -> RunRecord:
    """Return the record with model paths shortened to two components, so that no local folders are published."""
    teachers = tuple(replace(given, path=_short(given.path)) for given in record.teachers)
    init = record.init and replace(record.init, path=_short(record.init.path))
    config = record.config
    if distill := config.get("distill"):
        named = distill["teacher"]
        short = _short(named) if isinstance(named, str) else [_short(each) for each in named]
        config = {**config, "distill": {**distill, "teacher": short}}
    return replace(record, init=init, teachers=teachers, config=config)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def render_card(record: RunRecord, runs: list[RunRecord], sha256: str = "", licence: str = "unknown") -> str:
    """Return the card of one run as Markdown; `runs` are averaged for the summary, `sha256` is its model file's."""
    template = _environment().get_template("card.md.j2")
    return str(
        template.render(
            header=yaml.safe_dump(_header(record), sort_keys=False, allow_unicode=True, width=100),
            record=record,
            licence=licence,
            sha256=sha256,
            runs=runs,
            summary=summarize([run.accuracy for run in runs]),
            interval=wilson(record.accuracy, tested(record)),
            recipe=yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True, width=100),
            duplicates={pair: count for pair, count in (record.data.get("duplicates") or {}).items() if count},
        )
    )


def _header(record: RunRecord) -> dict[str, Any]:
    """The card's metadata for the hub, except the licence, which the template adds."""
    name = record.data["name"]
    on_hub = _HUB_NAMES.get(name)
    return {
        "library_name": "resfit",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "resfit", "residual-network", "pytorch"],
        **({"datasets": [on_hub]} if on_hub else {}),
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": record.recipe,
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": {"name": data_name(record), "type": on_hub or name, "split": "test"},
                        "metrics": _metrics(record),
                    }
                ],
            }
        ],
    }


def _metrics(record: RunRecord) -> list[dict[str, Any]]:
    test, peeked = record.test, " (chosen on the test set)" if record.peeked else ""
    found = [{"type": "accuracy", "name": f"Test accuracy{peeked}", "value": test.accuracy}]
    if test.accuracy_tta is not None:
        found.append(
            {
                "type": "accuracy",
                "name": f"Test accuracy with test-time augmentation{peeked}",
                "value": test.accuracy_tta,
            }
        )
    return found


@cache
def _environment() -> Any:
    """The templates of the pages, for Markdown."""
    made = environment().overlay(autoescape=False, keep_trailing_newline=True)
    made.filters = {**made.filters, "cell": _cell}
    return made


def _cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return (
        " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`").replace("<", "&lt;")
    )
