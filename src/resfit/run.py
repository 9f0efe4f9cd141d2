"""The one place that wires a run: recipe + seed -> run folder. `train` of the Python API lives here."""

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
from resfit.environment import pick_device
from resfit.errors import BadInput
from resfit.fast import fast_process
from resfit.files import claimed, remove_leftovers, write_atomic
from resfit.interrupt import Interrupts
from resfit.observer import Observer
from resfit.recipe import Recipe, checked_seed, get_recipe
from resfit.record import EpochPoint, RunRecord
from resfit.resume import begun_run, require_unused
from resfit.runner import Runner

_TRAINING = threading.RLock()


@contextmanager
def _alone_with_the_generators() -> Iterator[None]:
    """Within the block no other thread trains, and torch's generators, which all threads share, are ours."""
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
    """Train one recipe with one seed into the folder `out/<recipe>/<seed>`, and return its record.

    `resume` goes on from the folder's state, with the data folder and device that the run began with unless others are
    given, and `override` with a recipe, precision or kernels that have changed since. `init` is a run folder or a
    model.safetensors whose weights training begins with, all but the head's where the classes differ. `data` is what
    would be loaded, where it is in memory already. Raises BadInput ahead of any work for a recipe over its budget, data
    that cannot be used, or a folder that holds a run already; RunFailed when training stops early; Interrupted, with
    the state saved, after SIGINT or SIGTERM.

    In several processes that torchrun started all of them call this and get the record; the first writes and tells.
    In several threads one trains after the other. torch's random generators are left as they were.
    """
    recipe = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    seed, device = checked_seed(seed), str(device)
    require_fit(recipe.spec, recipe.budget)
    if resume and init is not None:
        raise BadInput("a resumed run has its weights (init): leave it out")
    given = [recipe.to_dict(), seed, device, resume, override, init is not None]
    distributed.require_same("recipes or options", json.dumps(given))
    if recipe.train.compile and not distributed.is_single():
        raise BadInput("several processes train no compiled network (train.compile): give false")
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
            if distributed.is_main():
                remove_leftovers(folder)
            run.restore(begun.state, override=override)
            if begun.changes:
                run.note(f"{run.place}: resumed with another recipe, {begun.changes}")
        if distributed.is_main():
            write_atomic(folder / "recipe.yaml", recipe.to_yaml())
        with Interrupts() as run.interrupts, _let_go(run):
            return run.execute()


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
    """Train one recipe with one seed for its validation curve alone: no folder, and no test score.

    The test images are taken out of the data, which may be given as to `train`, before training begins. Raises BadInput
    as `train` does, and for a recipe without a validation split or one that selects on the test set; RunFailed when
    training stops early, by a loss that is not finite too: nothing is rolled back to.
    """
    require_fit(recipe.spec, recipe.budget)
    if recipe.evaluate.selection == "best-test":
        raise BadInput("nothing may look at the test set here (evaluate.selection): give last or best-val")
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
    """Free the run's network, optimizer and images at the block's end.

    The run and its trainer hold each other: left alone, they would wait for Python's search for cycles, which is rare.
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
    """Where a run of `recipe` with `seed` lies."""
    return Path(out) / recipe.name / str(seed)


def fit_classes(recipe: Recipe, classes: Sequence[str]) -> Recipe:
    """The recipe with as many classes as an image folder has; for other data the numbers have to agree.

    Its price changes with them.
    """
    wanted, found = recipe.spec.num_classes, len(classes)
    if wanted == found:
        return recipe
    if recipe.data.name != "folder":
        raise BadInput(f"{wanted} classes, but {recipe.data.name} has {found} (spec.num_classes): give {found}")
    return replace(recipe, spec=replace(recipe.spec, num_classes=found))


def for_folder(recipe: Recipe, data_dir: Path | None, *, given: bool = False) -> Recipe:
    """The recipe with the classes of the image folder that it is for, ahead of any work; other recipes as they are.

    `given`: the user named their number, and another one is refused.
    """
    classes = class_names(recipe.data, data_dir)
    if classes is None:
        return recipe
    if given and recipe.spec.num_classes != len(classes):
        raise BadInput(
            f"the folder has {len(classes)} classes, not {recipe.spec.num_classes} (--spec.num_classes): leave it out, "
            "they are counted"
        )
    return fit_classes(recipe, classes)
