"""Set up and execute a training run from a recipe and a seed: `resfit.train`, and `fit` without a run folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from resfit import distributed
from resfit.budget import require_fit
from resfit.data import Dataset, class_names, load_dataset
from resfit.device import pick_device
from resfit.errors import BadInput
from resfit.fast import fast_process
from resfit.files import claimed, remove_leftovers, write_atomic
from resfit.interrupt import Interrupts
from resfit.observer import Observer
from resfit.recipe import Recipe, checked_seed, get_recipe
from resfit.record import EpochPoint, RunRecord
from resfit.resume import Begun, begun_run, require_unused
from resfit.runner import Runner

_TRAINING = threading.RLock()


@contextmanager
def _alone_with_the_generators() -> Iterator[None]:
    """Allow one training thread at a time, and restore torch's random generators, which threads share, afterwards."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _TRAINING, torch.random.fork_rng(devices=gpus):
        yield


@_alone_with_the_generators()
@fast_process()
@distributed.joined()
def train(
    recipe: Recipe | str | Path,
    *,
    seed: int = 0,
    data_dir: str | Path | None = None,
    out: str | Path = "runs",
    device: str | torch.device = "auto",
    offline: bool = False,
    resume: bool = False,
    init: str | Path | None = None,
    override: bool = False,
    data: Dataset | None = None,
    observer: Observer | None = None,
) -> RunRecord:
    """Train one recipe with one seed in the folder `out/<recipe>/<seed>`, and return its record.

    `resume` continues from the state in that folder, with the original data folder and device unless others are given;
    `override` accepts a recipe, precision or kernels that changed since. `init` is a run folder or a model.safetensors
    with the initial weights; its head is not used if the classes differ. `data` is the data set, if it is in memory
    already.

    Raises BadInput before training for a recipe over its budget, unusable data, or a folder that already contains a
    run; RunFailed when training stops early; Interrupted, after saving the state, on SIGINT or SIGTERM.

    Under torchrun all processes call this and get the record; only the first writes files and reports progress. Calls
    from several threads run one after the other. The state of torch's random generators is restored.
    """
    recipe = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    seed, device = checked_seed(seed), str(device)
    require_fit(recipe.spec, recipe.budget)
    if resume and init is not None:
        raise BadInput("a resumed run keeps its own weights (init): leave it out")
    given = [recipe.to_dict(), seed, device, resume, override, init is not None]
    distributed.require_same("recipes or options", json.dumps(given))
    if recipe.train.compile and not distributed.is_single():
        raise BadInput("several processes cannot train a compiled network (train.compile): give false")
    folder = run_folder(out, recipe, seed)
    with claimed(folder) if distributed.is_main() else nullcontext():
        observer = (observer if distributed.is_main() else None) or Observer()
        begun = begun_run(folder, recipe, override=override, tell=observer.message) if resume else None
        if begun is not None:
            recipe, data_dir = begun.recipe, data_dir or begun.state["data_dir"]
            device = begun.state["device"] if device == "auto" else device
        elif distributed.is_main():
            require_unused(folder)
        where = distributed.own_device(pick_device(device))
        with distributed.local_main_first():  # all processes, also where some of them have the data already
            data = data or _load(recipe, data_dir, offline, observer)
        recipe = fit_classes(recipe, data.classes)
        require_fit(recipe.spec, recipe.budget)
        if recipe.field_needing_val and not len(data.val):
            raise BadInput(f"no validation images ({recipe.field_needing_val}): give data.val, or a folder val/")
        distributed.require_same("data", data.digest)
        options = {"data_dir": None if data_dir is None else str(Path(data_dir).resolve()), "device": device}
        run = Runner(
            recipe=recipe,
            seed=seed,
            data=data,
            folder=folder,
            device=where,
            observer=observer,
            begin=init,
            options=options,
        )
        if begun is not None:
            _restore(run, begun, override)
        if distributed.is_main():
            write_atomic(folder / "recipe.yaml", recipe.to_yaml())
        with Interrupts() as run.interrupts, _let_go(run):
            return run.execute()


def _restore(run: Runner, begun: Begun, override: bool) -> None:
    """Bring a run to the state in its folder, and note what of its recipe changed."""
    if distributed.is_main():
        remove_leftovers(run.folder)
    run.restore(begun.state, override=override)
    if begun.changes:
        run.note(f"{run.place}: resumed with a changed recipe, {begun.changes}")


@_alone_with_the_generators()
@fast_process()
def validation_curve(
    recipe: Recipe,
    *,
    seed: int = 0,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    offline: bool = False,
    data: Dataset | None = None,
    observer: Observer | None = None,
) -> tuple[EpochPoint, ...]:
    """Train one recipe with one seed and return its validation curve; writes no folder and computes no test score.

    The test images are removed from the data, which can be passed as to `train`, before training starts. Raises
    BadInput as `train` does, and for a recipe without a validation split or one that selects on the test set. Raises
    RunFailed when training stops early, also at a loss that is not finite: there are no rollbacks.
    """
    require_fit(recipe.spec, recipe.budget)
    if recipe.evaluate.selection == "best-test":
        raise BadInput("the test set must not be used here (evaluate.selection): give last or best-val")
    seed, observer, where = checked_seed(seed), observer or Observer(), pick_device(str(device))
    data = data or _load(recipe, data_dir, offline, observer)
    if not len(data.val):
        raise BadInput("no validation split (data.val): give a count or a fraction of the training images")
    data, recipe = replace(data, test=data.test.take(torch.arange(0))), fit_classes(recipe, data.classes)
    require_fit(recipe.spec, recipe.budget)
    run = Runner(recipe=recipe, seed=seed, data=data, folder=Path(), device=where, observer=observer)
    with _let_go(run):
        return run.validation_curve()


@contextmanager
def _let_go(run: Runner) -> Iterator[None]:
    """Free the run's network, optimizer and images at the end of the block.

    The run and its trainer refer to each other, so they would otherwise stay in memory until the garbage collector
    runs.
    """
    try:
        yield
    finally:
        del run.trainer


def _load(recipe: Recipe, data_dir: str | Path | None, offline: bool, observer: Observer) -> Dataset:
    return load_dataset(
        recipe.data,
        size=recipe.spec.input.size,
        channels=recipe.spec.input.channels,
        data_dir=None if data_dir is None else Path(data_dir),
        offline=offline,
        progress=observer.message,
    )


def run_folder(out: str | Path, recipe: Recipe, seed: int) -> Path:
    """Return the folder of the run of `recipe` with `seed`."""
    return Path(out) / recipe.name / str(seed)


def fit_classes(recipe: Recipe, classes: Sequence[str]) -> Recipe:
    """Return the recipe with `spec.num_classes` set to the number of classes of an image folder.

    This changes its number of parameters. For other data, raises BadInput if the numbers differ.
    """
    wanted, found = recipe.spec.num_classes, len(classes)
    if wanted == found:
        return recipe
    if recipe.data.name != "folder":
        raise BadInput(f"{wanted} classes, but {recipe.data.name} has {found} (spec.num_classes): give {found}")
    return replace(recipe, spec=replace(recipe.spec, num_classes=found))


def for_folder(recipe: Recipe, data_dir: Path | None, *, given: bool = False) -> Recipe:
    """Return the recipe with the number of classes of its image folder, without loading images; others unchanged.

    With `given`, the user has set the number, and a different one raises BadInput.
    """
    classes = class_names(recipe.data, data_dir)
    if classes is None:
        return recipe
    if given and recipe.spec.num_classes != len(classes):
        raise BadInput(
            f"the folder has {len(classes)} classes, not {recipe.spec.num_classes} (--spec.num_classes): leave "
            "it out, the classes are counted"
        )
    return fit_classes(recipe, classes)
