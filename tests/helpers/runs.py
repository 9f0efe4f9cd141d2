"""Runs that are broken off or watched, and what they leave, apart from times and the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import resfit
from resfit.observer import Observer
from resfit.record import EpochPoint, RunRecord, read_record

# 3 steps an epoch, of two batches each but the last; every part of the state is in use.
EVERYTHING = {
    "train.epochs": 2,
    "train.batch_size": 256,
    "train.accumulate": 2,
    "optim.name": "muon",
    "optim.nesterov": True,
    "average.name": "ema",
    "average.decay": 0.8,
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "spec.dropout.head": 0.1,
    "evaluate.selection": "best-val",
    "evaluate.tta": "flip",
}
FOLDER = Path("tiny") / "0"  # of a run of the tiny recipe
NEVER = (0, None)  # a moment that does not come


class Watcher(Observer):
    """Calls `act` once, after a step (epoch, part of it) or at an epoch's end (epoch, None); keeps what it is told."""

    def __init__(self, moment: tuple[int, float | None], act: Callable[[], None]) -> None:
        self.moment, self.act = moment, act
        self.lines: list[str] = []

    def stepped(self, epoch: int, done: float) -> None:
        if self.moment[1] is not None and (epoch, round(done, 2)) == self.moment:
            self.act()

    def epoch_ended(self, point: EpochPoint) -> None:
        if (point.epoch, None) == self.moment:
            self.act()

    def message(self, text: str) -> None:
        self.lines.append(text)


class Interrupt(Observer):
    """Breaks off after an epoch, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def epoch_ended(self, point: EpochPoint) -> None:
        if point.epoch == self.after:
            raise KeyboardInterrupt


def left_by(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, apart from times and the machine."""
    plain = without_times(read_record(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plain["metrics.jsonl"] = [{**line, "seconds": 0} for line in lines]
    plain["weights"] = {name: value.tolist() for name, value in resfit.load(folder).state_dict().items()}
    return plain


def without_times(record: RunRecord) -> dict[str, Any]:
    """A record as plain data, apart from times and the machine."""
    plain = record.to_dict()
    for key in ("seconds_to_result", "seconds_saving", "images_per_second", "env"):
        plain.pop(key)
    plain["curve"] = [{**point, "seconds": 0} for point in plain["curve"]]
    return plain
