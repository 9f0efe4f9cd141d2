"""A trained network and the data of its training, from a run folder or a model file: scored, or made to score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from resfit.data import Dataset, load_dataset
from resfit.data.normalize import normalizer
from resfit.environment import pick_device
from resfit.errors import BadInput
from resfit.evaluate import TTA, predict_logits, score
from resfit.fast import fast_process
from resfit.fields import from_plain
from resfit.modelfile import load
from resfit.net import Network
from resfit.precision import autocast, usable_precision
from resfit.recipe import DataConfig, EvaluateConfig, Recipe
from resfit.record import Metrics, read_record


@fast_process()
def evaluate(
    target: str | Path,
    *,
    tta: str = "none",
    data_dir: str | Path | None = None,
    device: str = "auto",
    offline: bool = False,
    data: str | None = None,
) -> Metrics:
    """Score a run folder's or a model file's network on the test set of the data that it was trained on.

    `tta` "recipe" is that of the recipe beside the model, or flip+shift where it has none.
    `data` names another data set for a model file that lies outside its run folder. A network beside its recipe is
    scored in the recipe's precision, a lone one in fp32.
    """
    if tta not in (choices := ("recipe", *get_args(TTA))):
        raise BadInput(f"{tta!r} is no test-time augmentation (tta): give {', '.join(choices)}")
    net = load(target)
    loaded = data_of(net, target, data_dir=data_dir, offline=offline, data=data)
    if tta == "recipe":
        beside = _recipe_beside(target)
        tta = beside.evaluate.tta if beside and beside.evaluate.tta != "none" else "flip+shift"
    logits, logits_tta = scorer(net, target, pick_device(device))(loaded.test.images, tta)
    temperature = net.info.temperature
    return score(logits, loaded.test.labels, net.info.classes, logits_tta=logits_tta, temperature=temperature)


def data_of(
    net: Network,
    target: str | Path,
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Dataset:
    """The data that the network of a run folder or model file was trained on, or `data`, at the network's size.

    Raises BadInput where the model lies outside its run folder and `data` is not given, where classes differ, and where
    the test images are drawn from others than at the training, which may have seen some of them.
    """
    trained = _recipe_beside(target)
    config = trained.data if trained else None
    if data is not None:
        config = from_plain(DataConfig, {"name": data, "val": 0}, "data")
    if config is None:
        folder = run_folder_of(target)
        raise BadInput(f"no recipe.yaml beside the model ({folder}): say with --data which data set to score")
    loaded = load_dataset(
        config,
        size=net.spec.input.size,
        channels=net.spec.input.channels,
        data_dir=None if data_dir is None else Path(data_dir),
        offline=offline,
        progress=progress,
    )
    if tuple(loaded.classes) != tuple(net.info.classes):
        raise BadInput(
            f"the model knows other classes than {loaded.name} has ({target}): give the data of its training"
        )
    record = run_folder_of(target) / "record.json"
    seen = read_record(record).data if loaded.test_drawn and record.exists() else {}
    of = "digest" if data is None else "test_digest"  # a set that is named has splits of its own
    if seen.get("name") == loaded.name and seen.get(of) not in (None, "", getattr(loaded, of)):
        raise BadInput(
            f"the images are not those of the training, which may have seen some of what would be tested ({target}): "
            "put images to test on into test/ and others into train/"
        )
    return loaded


def scorer(net: Network, target: str | Path, where: torch.device) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """A function from uint8 images [N, C, H, W], and a TTA, to the logits of a loaded network, plain and with TTA.

    Computes on the device, in the precision of the recipe beside the model, or else in fp32.
    """
    trained, normalize = _recipe_beside(target), normalizer(net.info.mean, net.info.std, where)
    precision = usable_precision(trained.train.precision if trained else "fp32", where)
    how = trained.evaluate if trained else EvaluateConfig()
    net.to(where)

    def logits(images: Tensor, tta: TTA = "none") -> tuple[Tensor, Tensor | None]:
        with autocast(precision, where):
            return predict_logits(net, images, normalize, tta=tta, tta_share=how.tta_share, batch_size=how.batch_size)

    return logits


def run_folder_of(target: str | Path) -> Path:
    """The folder of a target that is a run folder or the model file in it."""
    return Path(target) if Path(target).is_dir() else Path(target).parent


def _recipe_beside(target: str | Path) -> Recipe | None:
    file = run_folder_of(target) / "recipe.yaml"
    return Recipe.from_yaml(file) if file.exists() else None
