"""Structured pruning: remove channels of a trained network to meet a budget, then fine-tune it like any other run.

docs/architecture.md explains why no library is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resfit.checkpoint import has_state
from resfit.cost import cost
from resfit.counts import short_count
from resfit.data import Images
from resfit.data.normalize import normalizer
from resfit.device import pick_device
from resfit.errors import BadInput
from resfit.fast import fast_process
from resfit.fields import is_within
from resfit.files import sha256, write_atomic
from resfit.latency import latencies
from resfit.modelfile import load, save_model
from resfit.net import Network
from resfit.observer import Observer
from resfit.pretrained import remark_on_weights
from resfit.prune.channels import importance, shrink
from resfit.prune.widths import fit_widths
from resfit.recipe import DistillConfig, Recipe, get_recipe
from resfit.record import ParentRun, PrunedNetwork, Pruning, RunRecord, is_finished, read_record, record_text
from resfit.report import write_report
from resfit.run import run_folder, train
from resfit.spec import NetSpec
from resfit.trained import Trained, evaluate

_IMAGES, _BATCH = 2000, 100  # training images to score channels on, batch size
_TEACHERS_WEIGHT = 0.9  # of the teacher, the unpruned network, in the loss; the labels have the rest
_CRITERION = "first-order Taylor (Molchanov et al. 2019) on training images"


@fast_process()
def prune(
    run: str | Path,
    *,
    budget: int,
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    data_dir: str | Path | None = None,
    device: str = "auto",
    offline: bool = False,
    teach: bool = True,
    observer: Observer | None = None,
) -> RunRecord:
    """Narrow the network of the finished run folder `run` to at most `budget` parameters, and fine-tune it.

    The fine-tuning is a run of `recipe`, by default the run's own (learning-rate rewinding: Renda et al. 2020), with
    `overrides`. The unpruned network is its teacher, unless `recipe` or `overrides` name another; with `teach` False
    there is none. The run folder is out/<run's recipe>-<budget>/<run's seed>; it also holds pruned.safetensors, the
    network before fine-tuning. The returned record has the comparison in its `pruning`. Repeating the call resumes an
    interrupted one.

    Raises BadInput if the run is not finished, the budget is already met or cannot be reached, or the folder is in use.
    """
    parent, trained, where = read_record(run), Trained(run), pick_device(device)
    net = trained.net
    if cost(net.spec).params <= budget:
        raise BadInput(f"{run} already fits, with {cost(net.spec).params:,} parameters (--budget): give a lower one")
    if trained.recipe is None:
        raise BadInput(f"no recipe.yaml in the run folder ({run}): bring it back")
    tuning = _tuning(parent, trained.recipe, recipe, overrides or {}, budget)
    taught = recipe or any(is_within(name, "distill") for name in overrides or {})
    chosen = tuning.distill if taught else None
    unpruned = DistillConfig(teacher=str(Path(run).resolve()), weight=_TEACHERS_WEIGHT)
    tuning = replace(tuning, distill=(chosen or unpruned) if teach else None)
    folder = run_folder(out, tuning, parent.seed)
    before = folder / "pruned.safetensors"
    if folder.exists() and any(folder.iterdir()) and not (before.exists() and _lacks_comparison(folder)):
        raise BadInput(f"a run already exists ({folder}): give another --out, or move it away")

    options: dict[str, Any] = {"data_dir": data_dir, "device": device, "offline": offline}
    tell = observer.message if observer else None
    data = trained.data(data_dir=data_dir, offline=offline, progress=tell)
    worth = importance(net.to(where), _batches(net, data.train, where))
    spec = fit_widths(net.spec, worth, budget)
    small = shrink(net.cpu(), spec, worth)
    tuning = replace(tuning, spec=spec)
    if not before.exists():
        save_model(before, small, spec, net.info)
    elif not _same(small, load(before)):
        raise BadInput(f"the pruning of another network already exists ({folder}): give another --out, or move it away")
    record = _fine_tuned(folder, tuning, seed=parent.seed, out=out, observer=observer, **options)

    pruning = Pruning(
        parent=ParentRun(recipe=parent.recipe, seed=parent.seed, sha256=sha256(Path(run) / "model.safetensors")),
        criterion=_CRITERION,
        networks=_networks(
            {"before": net, "pruned": small, "fine-tuned": load(folder)},
            [parent.test.accuracy, evaluate(before, **options).accuracy, record.test.accuracy],
            where,
        ),
        widths=_widths(net.spec, spec),
    )
    assert record.init is not None
    remark = remark_on_weights(parent, record.data, tuning.data)
    known = {"recipe": parent.recipe, "data": parent.data["digest"], "note": remark}
    record = replace(record, pruning=pruning, init=replace(record.init, **known))
    write_report([record], folder / "report.html")
    write_atomic(folder / "record.json", record_text(record))
    return record


def _lacks_comparison(folder: Path) -> bool:
    """Return whether a pruning was interrupted here, during fine-tuning or before the networks were compared."""
    return not is_finished(folder) or read_record(folder).pruning is None


def _fine_tuned(folder: Path, tuning: Recipe, **options: Any) -> RunRecord:
    """Return the record of the fine-tuning in `folder`: train it, resume it, or read it if it is finished."""
    if is_finished(folder):
        return read_record(folder)
    start: dict[str, Any] = {"resume": True} if has_state(folder) else {"init": folder / "pruned.safetensors"}
    return train(tuning, **start, **options)


def _same(one: Network, other: Network) -> bool:
    """Return whether two networks have the same spec and the same weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return one.spec == other.spec and all(torch.equal(mine, theirs) for mine, theirs in pairs)


def _tuning(parent: RunRecord, own: Recipe, recipe: str | None, overrides: Mapping[str, Any], budget: int) -> Recipe:
    """Return the fine-tuning recipe, still with the unpruned network."""
    if wrong := [name for name in overrides if is_within(name, "spec") or is_within(name, "data")]:
        raise BadInput(f"the pruned run keeps its network and its data (--{wrong[0]}): leave it out")
    base = get_recipe(recipe) if recipe else own
    return replace(
        base.replace(overrides),
        name=f"{parent.recipe}-{short_count(budget)}",
        description=f"{parent.recipe}, seed {parent.seed}, pruned to at most {budget:,} parameters and fine-tuned",
        spec=own.spec,
        data=own.data,
        budget=budget,
    )


def _batches(net: Network, part: Images, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    normalize = normalizer(net.info.mean, net.info.std, device)
    images, labels = part.images[:_IMAGES], part.labels[:_IMAGES]
    for batch, target in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        yield normalize(batch.to(device)), target.to(device)


def _networks(nets: Mapping[str, Network], accuracies: list[float], device: torch.device) -> tuple[PrunedNetwork, ...]:
    images = next(iter(nets.values())).spec.input
    times = latencies(list(nets.values()), (images.channels, images.size, images.size), device)
    return tuple(
        PrunedNetwork(
            name=name,
            accuracy=accuracy,
            params=cost(net.spec).params,
            macs=cost(net.spec).macs,
            latency=latency,
        )
        for (name, net), accuracy, latency in zip(nets.items(), accuracies, times, strict=True)
    )


def _widths(old: NetSpec, new: NetSpec) -> tuple[tuple[str, int, int], ...]:
    """Return every part's name and its channels before and after."""
    rows = [("stem", old.stem.channels, new.stem.channels)]
    for i, (a, b) in enumerate(zip(old.stages, new.stages, strict=True), 1):
        rows.append((f"stage {i}", a.channels, b.channels))
        rows.append((f"stage {i}, within blocks", a.inner or a.channels, b.inner or b.channels))
    return tuple(rows)
