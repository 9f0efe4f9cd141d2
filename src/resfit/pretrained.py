"""Trained networks that a run builds on: initial weights and distillation teachers, with checks for data leaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from resfit.data import Dataset
from resfit.distill import Renormalized
from resfit.errors import BadInput
from resfit.files import sha256
from resfit.modelfile import load, model_file, record_beside
from resfit.net import Network
from resfit.recipe import DataConfig, Recipe, takes_side
from resfit.record import GivenModel, RunRecord, read_record
from resfit.spec import NetSpec

# Fields of a spec that may differ without changing what the weights mean, apart from those of the head.
_FREE = frozenset({"num_classes", "head", "dropout", "input"})
_OTHER_FOLDER = "trained on other images of the same classes: this run may validate or be tested on some of them"
_SEEN = "trained on images that this run validates on, so that its validation accuracy is too high"
_UNKNOWN = "no record of its training images: this run may validate or be tested on some of them"


def begin_from(target: str | Path, net: Network, data: Dataset, config: DataConfig) -> GivenModel:
    """Initialize `net` with the weights of a trained network, except the head if the classes or its shape differ.

    Raises BadInput if `target` is not a trained network or its spec differs.
    """
    given, record, found = _load(target)
    if differing := _differing(net.spec, given.spec):
        raise BadInput(
            f"the network differs in {' and '.join(differing)} ({target}): give one with the recipe's own spec"
        )
    weights, taken = given.state_dict(), "all weights"
    if tuple(given.info.classes) != data.classes or _head_form(given) != _head_form(net):
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
        taken += f" except the head's, which is initialized anew for {len(data.classes)} classes"
    net.load_state_dict({**net.state_dict(), **weights})
    return replace(found, taken=taken, note=remark_on_weights(record, data.facts(), config))


def _differing(ours: NetSpec, theirs: NetSpec) -> list[str]:
    """Return the spec fields that differ and change what the weights mean."""
    names = [field.name for field in fields(ours) if field.name not in _FREE]
    differing = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    # At evaluation, ShakeDrop scales the residual according to its rate; other dropout has no effect.
    parts: dict[str, tuple[float, float]] = {"input.channels": (ours.input.channels, theirs.input.channels)}
    parts["dropout.shakedrop"] = (ours.dropout.shakedrop, theirs.dropout.shakedrop)
    return differing + [name for name, (one, other) in parts.items() if one != other]


def _head_form(net: Network) -> tuple[float, dict[str, tuple[int, ...]]]:
    return net.spec.head.scale, {name: tuple(value.shape) for name, value in net.head.state_dict().items()}


def load_teacher(
    target: str | Path, net: Network, data: Dataset, config: DataConfig, sides: Iterable[int] = ()
) -> tuple[nn.Module, GivenModel]:
    """Load a teacher that maps the inputs of `net` to logits of the same classes; return it and its description.

    `sides` are the image sides in pixels of `train.resize`. Raises BadInput if the teacher has other classes or another
    input shape, cannot take one of the sides, or was trained on validation images of this run or on another data set:
    the student's scores would then be misleading.
    """
    teacher, record, found = _load(target)
    if tuple(teacher.info.classes) != data.classes:
        raise BadInput(f"the teacher has other classes than {data.name} ({target}): give one with the same classes")
    if teacher.spec.input != net.spec.input:
        raise BadInput(f"the teacher takes images of another shape ({target}): give one with this recipe's spec.input")
    if unfit := [side for side in sides if not takes_side(teacher.spec, side)]:
        raise BadInput(
            f"the teacher cannot take images of {unfit[0]}x{unfit[0]} (train.resize, {target}): give one that pools "
            "the whole map, or leave train.resize out"
        )
    if record is not None:
        _check_training_images(target, record, data.facts(), config)
    note = _UNKNOWN if record is None else _peeked(record)
    given, own = (data.mean, data.std), (teacher.info.mean, teacher.info.std)
    behind = teacher if given == own else Renormalized(teacher, given=given, own=own)
    return behind, replace(found, taken="its answers to the training images", note=note)


def model_sha256(target: str | Path) -> str:
    """Return the SHA-256 of a model file or of the model in a run folder; raises BadInput if there is none."""
    file = model_file(target)
    if not file.is_file():
        raise BadInput(f"no model found ({file}): give a run folder or a model.safetensors")
    return sha256(file)


def _load(target: str | Path) -> tuple[Network, RunRecord | None, GivenModel]:
    """Load a trained network, the record of its run (if any), and its description for the new run's record."""
    net = load(target)
    beside = record_beside(target)
    record = read_record(beside) if beside else None
    return (
        net,
        record,
        GivenModel(
            path=str(target),
            sha256=model_sha256(target),
            params=sum(parameter.numel() for parameter in net.parameters()),
            recipe=record.recipe if record else None,
            data=record.data["digest"] if record else None,
        ),
    )


def _check_training_images(target: str | Path, record: RunRecord, data: Mapping[str, Any], config: DataConfig) -> None:
    if record.data["digest"] == data["digest"] or _same_validation(record, data, config):
        return
    if not _same_set(record, data):
        raise BadInput(
            f"the teacher was trained on other images than this run's ({target}): train one on the same data, with the "
            "same data.val and data.split_seed"
        )
    if data["n_val"]:
        raise BadInput(
            f"the teacher was trained on images that this run validates on ({target}): train one with this run's "
            "data.val and data.split_seed, or give data.val 0"
        )


def remark_on_weights(record: RunRecord | None, data: Mapping[str, Any], config: DataConfig) -> str:
    """Return a warning about possible data leaks for a run that starts from the recorded run's weights; usually "".

    `data` is the new run's data, as in a record, and `config` is its data configuration. `record` is None if the
    weights have no record.
    """
    if record is None:
        return _UNKNOWN
    if record.data["name"] != data["name"]:
        return ""
    if record.data["digest"] != data["digest"]:
        if data["name"] == "folder":
            return _OTHER_FOLDER if record.data["classes"] == data["classes"] else ""
        if data["n_val"] and _same_set(record, data) and not _same_validation(record, data, config):
            return _SEEN
    return _peeked(record)


def _same_set(record: RunRecord, data: Mapping[str, Any]) -> bool:
    """Return whether both runs use the same named data set and test images; unknown (False) for image folders."""
    theirs = record.data
    return data["name"] != "folder" and (theirs["name"], theirs["n_test"]) == (data["name"], data["n_test"])


def _same_validation(record: RunRecord, data: Mapping[str, Any], config: DataConfig) -> bool:
    """Return whether the recorded run had the same validation images; its training fraction may differ."""
    theirs = Recipe.from_dict(record.config).data
    return _same_set(record, data) and (theirs.val, theirs.split_seed) == (config.val, config.split_seed)


def _peeked(record: RunRecord) -> str:
    return "chosen on the test set, so that this run has seen it too" if record.peeked else ""
