"""Made-up records of runs of shipped recipes: their scores and how these came about."""

from __future__ import annotations

from typing import Any

from resfit.recipe import get_recipe
from resfit.record import Metrics, RunRecord


def record(recipe: str, seed: int, *, test: float, val: float | None = None, **changes: Any) -> RunRecord:
    """A made-up record; `selection`, `epochs` (trained), `planned` and `params` can be given."""
    config = get_recipe(recipe).to_dict()
    selection = changes.get("selection", config["evaluate"]["selection"])
    config["evaluate"]["selection"] = selection
    config["train"]["epochs"] = changes.get("planned", config["train"]["epochs"])

    def scores(accuracy: float) -> Metrics:
        return Metrics(accuracy=accuracy, loss=1.0, ece=0.1, per_class=(), confusion=(), reliability=())

    return RunRecord(
        resfit="0",
        recipe=recipe,
        config=config,
        spec=config["spec"],
        params=changes.get("params", 123_456),
        macs=1,
        budget=5_000_000,
        layers=(),
        seed=seed,
        epochs=changes.get("epochs", config["train"]["epochs"]),
        device="cpu",
        precision="bf16",
        env={
            "gpu": changes.get("gpu"),
            "threads": 2,
            "cpu_features": ["avx2", "amx_bf16"],
            "command": f"resfit train {recipe} --seed {seed} --evaluate.selection {selection}",
        },
        data={"name": "cifar10"},
        protocol={"selection": selection, "peeking": selection == "best-test"},
        seconds_to_result=1.0,
        images_per_second=1.0,
        val=None if val is None else scores(val),
        test=scores(test),
        curve=(),
    )
