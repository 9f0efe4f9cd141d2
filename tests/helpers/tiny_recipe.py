"""A recipe that trains in a second, as plain data."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "name": "tiny",
    "spec": {
        "input": {"channels": 1, "size": 8},
        "stem": {"channels": 8},
        "stages": [{"blocks": 1, "channels": 8}, {"blocks": 1, "channels": 16}],
    },
    "data": {"name": "digits", "val": 200},
    "augment": {"crop": 1},
    "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "train": {"epochs": 3, "batch_size": 128, "precision": "fp32"},
    "evaluate": {"tta": "flip+shift"},
}
