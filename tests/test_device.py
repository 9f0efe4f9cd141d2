"""The precision that is asked for is the one that is computed in, also where a trained network is scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resfit.device import autocast, usable_precision
from resfit.recipe import Recipe
from resfit.run import train
from resfit.trained import Trained

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize(
    ("features", "precision"),
    [(("avx2", "avx512f"), "fp32"), (("avx2", "avx512f", "avx512_bf16"), "bf16")],
)
def test_auto_is_bf16_where_the_processor_has_instructions_for_it(
    features: tuple[str, ...], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resfit.device.processor", lambda: ("some CPU", features))
    assert usable_precision("auto", CPU) == precision
    assert usable_precision("fp16", CPU) == "fp16"


@pytest.mark.parametrize("precision", DTYPES)
def test_products_have_the_precision(precision: str) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == DTYPES[precision]


@pytest.mark.parametrize("precision", DTYPES)
def test_a_run_is_scored_in_its_own_precision(precision: str, tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace({"train.precision": precision, "train.epochs": 1})
    train(recipe, out=tmp_path)
    folder = tmp_path / recipe.name / "0"
    trained, seen = Trained(folder), []
    trained.net.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    shape = (recipe.spec.input.channels, recipe.spec.input.size, recipe.spec.input.size)
    trained.logits(torch.zeros(2, *shape, dtype=torch.uint8))
    assert set(seen) == {DTYPES[precision]}
