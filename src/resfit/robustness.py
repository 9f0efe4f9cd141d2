"""Robustness of a trained network: accuracy on corrupted test images, and agreement with human labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from resfit.corruptions import CORRUPTIONS, SET, SEVERITIES, corrupt
from resfit.data import Dataset
from resfit.errors import BadInput
from resfit.evaluate import accuracy
from resfit.fast import fast_process
from resfit.fields import to_plain
from resfit.files import write_atomic
from resfit.modelfile import record_beside
from resfit.record import CorruptionScore, HumanAgreement, Robustness, read_record
from resfit.trained import Trained

_LEAST_HUMAN_ACCURACY = 0.5  # below this, the labels are assumed to belong to other images or to be in another order


@fast_process()
def score_corruptions(
    target: str | Path,
    *,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str = "auto",
    offline: bool = False,
    data: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Robustness:
    """Measure a network's accuracy on the test images under each corruption and severity of `resfit.corruptions`.

    Writes robustness.json next to the run's record; raises BadInput if that file exists. Nothing is written for other
    test images than the run's own, or for a model file outside its run folder; `data` names another data set.
    `progress` gets a line per corruption.
    """
    trained = Trained(target, device)
    loaded = trained.data(data, data_dir=data_dir, offline=offline, test_only=True)
    file, test = _place(target, "robustness", data, loaded), loaded.test

    def accuracy_on(images: Tensor) -> float:
        return accuracy(trained.logits(images)[0], test.labels)

    kinds = []
    for kind, corruption in CORRUPTIONS.items():
        corrupted = (torch.from_numpy(corrupt(test.images.numpy(), kind, s, seed)) for s in SEVERITIES)
        kinds.append(CorruptionScore(kind=kind, group=corruption.group, accuracy=tuple(map(accuracy_on, corrupted))))
        if progress:
            progress(f"{kind}: {', '.join(f'{100 * value:.2f}' for value in kinds[-1].accuracy)} %")
    result = Robustness(
        set=SET,
        seed=seed,
        images=len(test),
        clean=accuracy_on(test.images),
        mean=float(np.mean([kind.accuracy for kind in kinds])),
        kinds=tuple(kinds),
    )
    _keep(result, file)
    return result


@fast_process()
def score_humans(
    target: str | Path,
    labels: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str = "auto",
    offline: bool = False,
    data: str | None = None,
) -> HumanAgreement:
    """Compare a network's probabilities with human labels of its test images (Peterson et al. 2019, CIFAR-10H).

    `labels` is an .npy file of label counts or fractions, [test images, classes], in the data set's order. The result
    is written to human.json, under the same rules as in `score_corruptions`. Raises BadInput if the file does not match
    these images.
    """
    trained = Trained(target, device)
    loaded = trained.data(data, data_dir=data_dir, offline=offline, test_only=True)
    file = _place(target, "human", data, loaded)
    people = _read_people(Path(labels), loaded)
    result = agreement(trained.logits(loaded.test.images)[0], people, loaded.test.labels)
    _keep(result, file)
    return result


def agreement(logits: Tensor, people: Tensor, labels: Tensor) -> HumanAgreement:
    """Compare logits [N, K] with human label distributions, float64 [N, K], of images with `labels`, int64 [N].

    If several classes tie as the humans' most frequent one, each of them counts as their choice.
    """
    favourite = people == people.max(1, keepdim=True).values
    return HumanAgreement(
        images=len(labels),
        agreement=_share(favourite, logits.argmax(1)),
        human_accuracy=_share(favourite, labels),
        cross_entropy=-(people * logits.double().log_softmax(1)).sum(1).mean().item(),
        human_entropy=-torch.special.xlogy(people, people).sum(1).mean().item(),
    )


def _share(favourite: Tensor, classes: Tensor) -> float:
    return favourite.gather(1, classes[:, None]).double().mean().item()


def _read_people(file: Path, data: Dataset) -> Tensor:
    """Read the human label distributions, float64 [N, K]; raise BadInput if they do not match the test set."""
    try:
        counts = np.load(file, allow_pickle=False)
        values = np.asarray(counts, dtype=np.float64)
    except FileNotFoundError:
        raise BadInput(f"no such file ({file}): give an .npy file of label counts") from None
    except (OSError, ValueError, TypeError, EOFError, BadZipFile):
        raise BadInput(f"not an array of label counts ({file}): give an .npy file of numbers") from None
    wanted = (len(data.test), len(data.classes))
    if values.shape != wanted:
        shape = " x ".join(map(str, values.shape))
        raise BadInput(f"label counts of {shape} ({file}): {data.name}'s test set needs {wanted[0]} x {wanted[1]}")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values.sum(1) > 0).all()):
        raise BadInput(f"not label counts ({file}): give numbers of at least 0, and at least one label per image")
    people = torch.from_numpy(values / values.sum(1, keepdims=True))
    right = _share(people == people.max(1, keepdim=True).values, data.test.labels)
    if right < _LEAST_HUMAN_ACCURACY:
        raise BadInput(
            f"people chose the label on {100 * right:.1f} % of the images ({file}): "
            f"give the counts of the {data.name} test images, in their order"
        )
    return people


def _keep(result: Any, file: Path | None) -> None:
    if file is not None:
        write_atomic(file, json.dumps(to_plain(result), indent=1))


def _place(target: str | Path, name: str, data: str | None, loaded: Dataset) -> Path | None:
    """Return the path of NAME.json next to the record; None if the result is not of the run's own network and images.

    Raises BadInput if it exists already.
    """
    beside = record_beside(target) if data is None else None
    if beside is None or read_record(beside).data.get("test_digest", "") != loaded.test_digest:
        return None
    if (file := beside.with_name(f"{name}.json")).exists():
        raise BadInput(f"already measured ({file}): see it with resfit report, or move it away")
    return file
