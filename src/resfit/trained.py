"""A trained network with its recipe and data: `resfit.evaluate`, and `Trained` for logits on the test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from torch import Tensor

from resfit.data import Dataset, load_dataset
from resfit.data.normalize import normalizer
from resfit.device import autocast, pick_device, usable_precision
from resfit.errors import BadInput
from resfit.evaluate import TTA, predict_logits, score
from resfit.fast import fast_process
from resfit.fields import from_plain
from resfit.modelfile import load
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
    """Score the network of a run folder or model file on the test set of the data it was trained on.

    `tta` "recipe" uses the test-time augmentation of the recipe next to the model, or flip+shift if that has none or
    there is no recipe. `data` names another data set, for a model file outside its run folder. A network with a recipe
    is scored in the recipe's precision, any other in fp32.
    """
    if tta not in (choices := ("recipe", *get_args(TTA))):
        raise BadInput(f"{tta!r} is not a test-time augmentation (tta): give {', '.join(choices)}")
    trained = Trained(target, device)
    test, info = trained.data(data, data_dir=data_dir, offline=offline, test_only=True).test, trained.net.info
    if tta == "recipe":
        own = trained.recipe.evaluate.tta if trained.recipe else "none"
        tta = "flip+shift" if own == "none" else own
    logits, logits_tta = trained.logits(test.images, cast(TTA, tta))
    return score(logits, test.labels, info.classes, logits_tta=logits_tta, temperature=info.temperature)


class Trained:
    """The network of a run folder or model file on a device, with the recipe next to it, or None if there is none.

    Raises BadInput if the model, the recipe or the device cannot be used.
    """

    def __init__(self, target: str | Path, device: str = "cpu") -> None:
        self.target, self.device = Path(target), pick_device(device)
        self.net = load(target).to(self.device)
        self.folder = self.target if self.target.is_dir() else self.target.parent
        file = self.folder / "recipe.yaml"
        self.recipe = Recipe.from_yaml(file) if file.exists() else None

    def data(
        self,
        name: str | None = None,
        *,
        data_dir: str | Path | None = None,
        offline: bool = False,
        progress: Callable[[str], None] | None = None,
        test_only: bool = False,
    ) -> Dataset:
        """Load the data the network was trained on, or the data set called `name`, at the network's image size.

        With `test_only`, an image folder may consist of test/ alone. Raises BadInput if there is neither a recipe nor a
        name, if the classes differ, or if the test images were drawn from a folder that has changed since, because the
        network may have been trained on some of them.
        """
        config = self.recipe.data if self.recipe else None
        if name is not None:
            config = from_plain(DataConfig, {"name": name, "val": 0}, "data")
        if config is None:
            raise BadInput(f"no recipe.yaml next to the model ({self.folder}): give the data set to score with --data")
        loaded = load_dataset(
            config,
            size=self.net.spec.input.size,
            channels=self.net.spec.input.channels,
            data_dir=None if data_dir is None else Path(data_dir),
            offline=offline,
            progress=progress,
            test_only=test_only,
        )
        if tuple(loaded.classes) != tuple(self.net.info.classes):
            raise BadInput(
                f"the model has other classes than {loaded.name} ({self.target}): give the data it was trained on"
            )
        record = self.folder / "record.json"
        seen = read_record(record).data if loaded.test_drawn and record.exists() else {}
        of = "digest" if name is None else "test_digest"  # a data set given by name has its own splits
        if seen.get("name") == loaded.name and seen.get(of) not in (None, "", getattr(loaded, of)):
            raise BadInput(
                "the images have changed since training, which may have used some of the test images "
                f"({self.target}): put images to test on into test/, images to train on into train/"
            )
        return loaded

    def logits(self, images: Tensor, tta: TTA = "none") -> tuple[Tensor, Tensor | None]:
        """Return the logits [N, K] of uint8 images [N, C, H, W], without and with test-time augmentation.

        They are computed in the recipe's precision, or in fp32 without a recipe.
        """
        recipe, info = self.recipe, self.net.info
        how = recipe.evaluate if recipe else EvaluateConfig()
        precision = usable_precision(recipe.train.precision if recipe else "fp32", self.device)
        normalize = normalizer(info.mean, info.std, self.device)
        with autocast(precision, self.device):
            return predict_logits(
                self.net, images, normalize, tta=tta, tta_share=how.tta_share, batch_size=how.batch_size
            )
