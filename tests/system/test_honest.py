"""The numbers are right: the test set decides nothing, and watching a run does not change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from resfit import run, runner
from resfit.data import Dataset, Images
from resfit.observer import Observer
from resfit.recipe import Recipe
from resfit.record import EpochPoint
from resfit.run import train, validation_curve

Load = Callable[..., Dataset]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, the test set is noise with random labels."""
    load: Load = run.load_dataset

    def noise(*args: Any, **options: Any) -> Dataset:
        data, generator = load(*args, **options), torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, data.test.images.shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, len(data.classes), data.test.labels.shape, generator=generator)
        return replace(data, test=Images(images=images, labels=labels))

    return lambda: monkeypatch.setattr(run, "load_dataset", noise)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"evaluate.selection": "best-val"},
        {"train.patience": 1, "train.epochs": 5},
        {"average.name": "swa", "train.skip_easy": 0.3},
    ],
)
def test_the_test_set_decides_nothing(
    tiny: Recipe, tmp_path: Path, spoil: Callable[[], None], overrides: dict[str, Any]
) -> None:
    recipe = tiny.replace(overrides)
    true = train(recipe, out=tmp_path / "true")
    spoil()
    noise = train(recipe, out=tmp_path / "noise")
    assert noise.test != true.test  # it was another test set
    assert same(weights(tmp_path / "true/tiny/0"), weights(tmp_path / "noise/tiny/0"))
    assert true.temperature == noise.temperature
    for a, b in zip(true.curve, noise.curve, strict=True):
        assert replace(a, seconds=0.0) == replace(b, seconds=0.0)


class Watcher(Observer):
    """Sees the data that a run has."""

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        self.test_images = len(data.test)


def test_tuning_sees_no_test_image(tiny: Recipe, spoil: Callable[[], None]) -> None:
    def curve() -> list[EpochPoint]:
        return [replace(point, seconds=0.0) for point in validation_curve(tiny, seed=0)]

    before = curve()
    spoil()
    assert curve() == before
    assert all(point.val_accuracy is not None and point.test_accuracy is None for point in before)
    watcher = Watcher()
    validation_curve(tiny, seed=0, observer=watcher)
    assert watcher.test_images == 0


@pytest.mark.parametrize(("selection", "looks"), [("last", 1), ("best-val", 1), ("best-test", 4)])
def test_the_test_set_is_scored_as_often_as_the_record_says(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, looks: int
) -> None:
    scored: list[int] = []
    predict = runner.predict_logits

    def counted(net: torch.nn.Module, images: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        scored.append(len(images))
        return predict(net, images, *rest, **options)

    monkeypatch.setattr(runner, "predict_logits", counted)
    record = train(tiny.replace({"evaluate.selection": selection}), out=tmp_path)
    assert scored.count(record.data["n_test"]) == record.protocol["test_scored"] == looks
    assert record.protocol["peeking"] is (selection == "best-test")


def test_a_run_scores_as_its_recipe_says(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int, bool]] = []
    predict = runner.predict_logits

    def watched(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        seen.append((options["tta_share"], options["batch_size"], torch.is_autocast_enabled("cpu")))
        return predict(*arguments, **options)

    monkeypatch.setattr(runner, "predict_logits", watched)
    scored = {"evaluate.tta_share": 0.3, "evaluate.batch_size": 77, "train.precision": "bf16", "train.epochs": 1}
    train(tiny.replace(scored), out=tmp_path)
    assert set(seen) == {(0.3, 77, True)}


class Curious(Observer):
    """Draws from torch's global generator, as a careless metric may."""

    def epoch_ended(self, point: EpochPoint) -> None:
        """None of what it draws may be missing in the run."""
        torch.rand(point.epoch)

    def message(self, text: str) -> None:
        """Neither here."""
        torch.rand(1)


def test_watching_a_run_does_not_change_it(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace({"spec.dropout.head": 0.3})  # drawn from the global generator
    train(recipe, out=tmp_path / "alone")
    train(recipe, out=tmp_path / "watched", observer=Curious())
    assert same(weights(tmp_path / "alone/tiny/0"), weights(tmp_path / "watched/tiny/0"))
