"""What is compared with the files in tests/golden: how it is made, and where they lie."""

from __future__ import annotations

import numpy as np

from helpers.places import ROOT
from helpers.training import trainer
from resfit.corruptions import CORRUPTIONS, SET, SEVERITIES, corrupt
from resfit.recipe import Recipe

LOSSES = ROOT / "tests" / "golden" / "losses.json"
VALUES = ROOT / "tests" / "golden" / "corruptions.json"
PARAMS = ROOT / "tests" / "golden" / "params.json"

# Parameters, typed from the reports, so that making a file anew cannot move them.
REPORTED = {
    "seed000": 4_729_610,
    "seed001a": 2_777_674,
    "seed001b": 2_797_610,
    "seed001c": 4_366_250,
    "seed001d": 4_977_226,
    "seed003": 4_697_162,
    "seed004": 4_398_890,
}


def twenty_losses(tiny: Recipe) -> list[float]:
    """Losses of ten epochs of two steps."""
    run = trainer(tiny.replace({"train.epochs": 10, "train.batch_size": 128, "augment.flip": "alternating"}))
    return [round(result.loss, 5) for result in run.epochs()]


def pictures(channels: int = 3, side: int = 32, count: int = 6) -> np.ndarray:
    """Smooth shapes with edges, uint8 [count, channels, side, side], none of them black or white all over."""
    y, x = np.mgrid[:side, :side] / side
    shapes = [
        np.stack([0.5 + 0.3 * np.sin(7 * x + n + c) * np.cos(5 * y * (1 + n)) for c in range(channels)])
        for n in range(count)
    ]
    images = np.stack(shapes)
    images[:, :, side // 4 : side // 2, side // 4 : side // 2] *= 0.3
    return np.rint(255 * images).astype(np.uint8)


def values() -> dict[str, object]:
    """Mean and deviation of the pixels of each kind at each severity."""
    found: dict[str, list[list[float]]] = {}
    for kind in CORRUPTIONS:
        damaged = [corrupt(pictures(), kind, severity) for severity in SEVERITIES]
        found[kind] = [[round(float(each.mean()), 2), round(float(each.std()), 2)] for each in damaged]
    return {"set": SET, "pixels": found}
