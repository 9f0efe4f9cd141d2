"""The one place that wires a run: recipe + seed -> run folder. `train` of the Python API lives here."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resfit import distributed, kernels
from resfit.budget import require_fit
from resfit.checkpoint import STATE, newest_state, save_state
from resfit.cost import cost
from resfit.data import Dataset, Images, class_names, load_dataset
from resfit.data.normalize import normalizer
from resfit.environment import command_line, environment, pick_device
from resfit.errors import BadInput, Diverged, RunFailed
from resfit.evaluate import fit_temperature, predict_logits, score
from resfit.fast import fast_process
from resfit.fields import to_plain
from resfit.files import append_line, claimed, remove_leftovers, write_atomic
from resfit.interrupt import Interrupted, Interrupts
from resfit.layers import FrozenConv
from resfit.memory import require_room
from resfit.modelfile import ModelInfo, save_model
from resfit.net import Network, build
from resfit.observer import Apart, Observer
from resfit.precision import autocast, usable_precision
from resfit.pretrained import begin_from, load_teacher
from resfit.recipe import Recipe, checked_seed, get_recipe
from resfit.record import EpochPoint, GivenModel, Metrics, RunRecord, record_text
from resfit.recordparts import augmented_grid, layer_rows, samples
from resfit.report import write_report
from resfit.report.words import thread_count
from resfit.resume import STATE_FORMAT, begun_run, require_unused
from resfit.train import EpochResult, Trainer
from resfit.version import __version__

_SAVES_SHARE = 0.01  # of the time, at the most
_WHITENING_IMAGES = 5000
_TRAINING = threading.RLock()


@contextmanager
def _alone_with_the_generators() -> Iterator[None]:
    """Within the block no other thread trains, and torch's generators, which all threads share, are ours."""
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
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
    """Train one recipe with one seed into the folder out/<recipe>/<seed>, and return its record.

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
    options = [recipe.to_dict(), seed, device, resume, override, init is not None]
    distributed.require_same("recipes or options", json.dumps(options))
    if recipe.train.compile and not distributed.alone():
        raise BadInput("several processes train no compiled network (train.compile): give false")
    folder = run_folder(out, recipe, seed)
    with claimed(folder) if distributed.is_leader() else nullcontext():
        observer = (observer if distributed.is_leader() else None) or Observer()
        begun = begun_run(folder, recipe, override=override, tell=observer.message) if resume else None
        if begun is not None:
            recipe, data_dir = begun.recipe, data_dir or begun.state["data_dir"]
            device = begun.state["device"] if device == "auto" else device
        elif distributed.is_leader():
            require_unused(folder)
        where = distributed.own_device(pick_device(device))
        if data is None:
            with distributed.machine_leader_first():
                data = _load(recipe, data_dir, offline, observer)
        recipe = fit_classes(recipe, data.classes)
        if recipe.field_needing_val and not len(data.val):
            raise BadInput(f"no validation images ({recipe.field_needing_val}): give data.val, or a folder val/")
        distributed.require_same("data", data.digest)
        run = _Run(recipe=recipe, seed=seed, data=data, folder=folder, device=where, observer=observer, begin=init)
        run.options = {"data_dir": None if data_dir is None else str(Path(data_dir).resolve()), "device": device}
        if begun is not None:
            if distributed.is_leader():
                remove_leftovers(folder)
            run.restore(begun.state, override=override)
            if begun.changes:
                run.note(f"{run.place}: resumed with another recipe, {begun.changes}")
        if distributed.is_leader():
            write_atomic(folder / "recipe.yaml", recipe.to_yaml())
        with Interrupts() as run.interrupts, _let_go(run):
            return run.execute()


@_alone_with_the_generators()
@fast_process()
def fit(
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
    training stops early.
    """
    require_fit(recipe.spec, recipe.budget)
    if recipe.evaluate.selection == "best-test":
        raise BadInput("nothing may look at the test set here (evaluate.selection): give last or best-val")
    seed, observer, where = checked_seed(seed), observer or Observer(), pick_device(str(device))
    data = data or _load(recipe, data_dir, offline, observer)
    if not len(data.val):
        raise BadInput("no validation split (data.val): give a count or a fraction of the training images")
    data, recipe = replace(data, test=data.test.take(torch.arange(0))), fit_classes(recipe, data.classes)
    run = _Run(recipe=recipe, seed=seed, data=data, folder=Path(), device=where, observer=observer)
    with _let_go(run):
        return run.fit()


@contextmanager
def _let_go(run: _Run) -> Iterator[None]:
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
    """The recipe with as many classes as an image folder has; for other data the numbers have to agree."""
    wanted, found = recipe.spec.num_classes, len(classes)
    if wanted == found:
        return recipe
    if recipe.data.name != "folder":
        raise BadInput(f"{wanted} classes, but {recipe.data.name} has {found} (spec.num_classes): give {found}")
    recipe = replace(recipe, spec=replace(recipe.spec, num_classes=found))
    require_fit(recipe.spec, recipe.budget)
    return recipe


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


@dataclass(kw_only=True)
class _Run:
    """One run under way."""

    recipe: Recipe
    seed: int
    data: Dataset
    folder: Path
    device: torch.device
    observer: Observer
    begin: str | Path | None = None
    init: GivenModel | None = None
    curve: list[EpochPoint] = field(default_factory=list)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    test_scored: int = 0
    seconds_before: float = 0.0
    seconds_saving: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)  # data folder and device as they were given
    events: list[str] = field(default_factory=list)
    rollbacks: int = 0
    command: str = field(default_factory=command_line)  # that began the run, whatever resumed it
    interrupts: Interrupts = field(default_factory=Interrupts)

    def __post_init__(self) -> None:
        self.observer = Apart(self.observer, self.device)
        torch.manual_seed(self.seed)
        self.normalize = normalizer(self.data.mean, self.data.std, self.device)
        self.precision = distributed.from_leader(lambda: usable_precision(self.recipe.train.precision, self.device))
        if self.device.type == "cuda":
            needed = self.data.train.images.nbytes
            require_room("the training images on the GPU", needed, torch.cuda.mem_get_info(self.device)[0])
        images, labels = self.data.train.images.to(self.device), self.data.train.labels.to(self.device)
        self.clock = time.perf_counter()
        self.net = build(self.recipe.spec, self.recipe.init).to(self.device)
        whiten_stem(self.net, self.normalize(images[:_WHITENING_IMAGES]))
        if self.begin is not None:
            self.init = begin_from(self.begin, self.net, self.data, self.recipe.data)
            self.observer.message(f"begins from {self.init}")
        distributed.begin_alike(self.net)
        self.teachers = self._load_teachers()
        self.trainer = Trainer(
            net=self.net,
            recipe=self.recipe,
            images=images,
            labels=labels,
            normalize=self.normalize,
            seed=self.seed,
            precision=self.precision,
            fill=(255 * torch.tensor(self.data.mean, device=self.device)).round().to(torch.uint8),
            teachers=[teacher.to(self.device) for teacher, _ in self.teachers],
            on_step=self._stepped,
            on_note=self.note,
        )
        self.clock += self.trainer.warm_up()
        self.saved: tuple[int, ...] | None = None  # the progress that lies in the state's file
        self.save_due = 0.0  # by time.perf_counter()

    def _load_teachers(self) -> list[tuple[nn.Module, GivenModel]]:
        distill, config = self.recipe.distill, self.recipe.data
        sides = [side for _, side in self.recipe.train.resize]
        targets = distill.teachers if distill else ()
        loaded = [load_teacher(target, self.net, self.data, config, sides) for target in targets]
        for _, teacher in loaded:
            self.observer.message(f"learns from {teacher}")
        return loaded

    @property
    def selection(self) -> str:
        return self.recipe.evaluate.selection

    def fit(self) -> tuple[EpochPoint, ...]:
        """Train and validate; nothing is written and the test set is not scored."""
        self.save_due = math.inf
        self._tell_the_start()
        for result in self.trainer.epochs():
            self.curve.append(self._validated(result))
            self.observer.epoch_ended(self.curve[-1])
            if self._out_of_patience():
                break
        return tuple(self.curve)

    def _tell_the_start(self) -> None:
        self.observer.started(self.recipe, self.data, self.folder, self._note())
        for remark in self.recipe.remarks():
            self.observer.message(remark)

    def _note(self) -> str:
        parts = [self.device.type, self.precision, thread_count(torch.get_num_threads())]
        parts += [] if distributed.alone() else [f"{distributed.world_size()} processes"]
        parts += [f"kernels: {' '.join(self.kernels)}"] if self.kernels else []
        parts += ["no C++ compiler was found for faster kernels"] if self._may_use_kernels and not self.kernels else []
        return ", ".join(parts)

    @property
    def _may_use_kernels(self) -> bool:
        on_cpu = self.device.type == "cpu" and self.precision == "bf16" and not self.recipe.train.compile
        return on_cpu and bool(kernels.suited())

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels of resfit that compute what torch would."""
        return kernels.in_use() if self._may_use_kernels else ()

    def execute(self) -> RunRecord:
        """Train what is left, score the test set, and leave the folder complete."""
        began = time.perf_counter()
        self._tell_the_start()
        self.clock += time.perf_counter() - began  # a log that is slow to open is no part of the run
        self._write_metrics()
        self._save_state()
        while not self._trained():
            self._roll_back()
        self._between_steps()
        record = self._finish()
        self.observer.finished(record)
        asked, _ = self._agree()  # no process ends before the folder is complete: torchrun ends all when one has failed
        if asked:
            raise Interrupted(asked, f"the run is finished ({self.folder})")
        return record

    def _trained(self) -> bool:
        """Train the epochs that are left; False where that diverged and the recipe allows to go back once more."""
        try:
            for result in () if self._out_of_patience() else self.trainer.epochs():
                point = self._validated(result)
                self.curve.append(point)
                self._append_metrics(point)
                self.observer.epoch_ended(point)
                self._between_steps()
                if self._out_of_patience():
                    self.observer.message(f"stopped early: no better validation in {self.recipe.train.patience} epochs")
                    break
            self._save_state()
        except Diverged as error:
            if self.rollbacks >= self.recipe.train.rollbacks:
                raise
            self.observer.message(str(error))
            return False
        return True

    def _roll_back(self) -> None:
        """Go back to the last state, which is finite, and on from it with lower rates."""
        diverged, factor = self.place, self.recipe.train.rollback_factor
        self._go_back_to(distributed.from_leader(lambda: newest_state(self.folder, self.observer.message)))
        self.rollbacks += 1
        self.trainer.slow_down(factor)
        self.note(f"{diverged}: not finite; back to {self.place}, with learning rates x {factor:g}")
        self._write_metrics()
        self._save_state()

    def note(self, line: str) -> None:
        """Tell the user, and the record, of something that befell the run."""
        self.events.append(line)
        self.observer.message(line)

    @property
    def place(self) -> str:
        """Where the training stands, in words."""
        now = self.trainer.under_way
        return f"epoch {self.trainer.epoch + 1}, image {now.seen:,}" if now else f"epoch {self.trainer.epoch + 1}"

    def _stepped(self, epoch: int, done: float) -> None:
        self.observer.stepped(epoch, done)
        self._between_steps()

    def _between_steps(self) -> None:
        """Save the state where it is time for it, and stop where a signal asked."""
        asked, due = self._agree()
        if asked or due:
            self._save_state()
        if asked:
            distributed.wait_for_all()  # torchrun ends all processes when one has ended
            raise Interrupted(asked, f"go on with resfit train --resume {self.folder}")

    def _agree(self) -> tuple[int, ...]:
        """The number of the signal that any process got, or 0; whether the first one's clock says to save."""
        due = distributed.is_leader() and time.perf_counter() > self.save_due
        return distributed.largest(self.interrupts.asked or 0, due)

    def _validated(self, result: EpochResult) -> EpochPoint:
        """The epoch's point on the curve; validates, and keeps the weights that are the best so far."""
        config, last = self.recipe.evaluate, result.epoch == self.recipe.train.epochs
        val = test = None
        if len(self.data.val) and (result.epoch % config.every == 0 or last):
            val = self._score(self.data.val)
        if self.selection == "best-test":
            test = self._score(self.data.test)
            self.test_scored += 1
        judged = test if self.selection == "best-test" else val
        if judged is not None and (self.best is None or judged.accuracy > self.best[0]):
            keep = {} if self.selection == "last" else self.trainer.evaluated.state_dict()
            self.best = (judged.accuracy, result.epoch, {name: value.clone() for name, value in keep.items()})
        return EpochPoint(
            epoch=result.epoch,
            train_loss=result.loss,
            train_accuracy=result.accuracy,
            val_loss=val.loss if val else None,
            val_accuracy=val.accuracy if val else None,
            test_accuracy=test.accuracy if test else None,
            lr=result.lr,
            seconds=result.seconds,
            images=result.images,
        )

    def _out_of_patience(self) -> bool:
        patience = self.recipe.train.patience
        if not (patience and self.best and self.curve):
            return False
        judged = self.curve[-1].val_accuracy is not None or self.curve[-1].test_accuracy is not None
        return judged and self.trainer.epoch - self.best[1] >= patience

    def _logits(self, part: Images, tta: bool = False) -> tuple[Tensor, Tensor | None]:
        config = self.recipe.evaluate
        with autocast(self.precision, self.device):
            return predict_logits(
                self.trainer.evaluated,
                part.images.to(self.device),
                self.normalize,
                tta=config.tta if tta else "none",
                tta_share=config.tta_share,
                batch_size=config.batch_size,
            )

    def _score(self, part: Images) -> Metrics:
        logits, _ = self._logits(part)
        return score(logits, part.labels, self.data.classes)

    def _finish(self) -> RunRecord:
        """Score the chosen weights on the test set, once, and write model, record and report."""
        if self.selection != "last" and self.best is not None:
            self.trainer.evaluated.load_state_dict(self.best[2])
        logits, logits_tta = self._logits(self.data.test, tta=True)
        self.test_scored += 1
        seconds = self.seconds_before + time.perf_counter() - self.clock
        record = self._record(logits, logits_tta, seconds)
        if distributed.is_leader():
            self._write(record)
        return record

    def _write(self, record: RunRecord) -> None:
        info = ModelInfo(
            classes=self.data.classes, mean=self.data.mean, std=self.data.std, temperature=record.temperature
        )
        save_model(self.folder / "model.safetensors", self.trainer.evaluated, self.recipe.spec, info)
        write_report([record], self.folder / "report.html")
        write_atomic(self.folder / "record.json", record_text(record))

    def _record(self, logits: Tensor, logits_tta: Tensor | None, seconds: float) -> RunRecord:
        """The record, with the test set's logits."""
        recipe, data, price = self.recipe, self.data, cost(self.recipe.spec)
        val = self._logits(data.val)[0] if len(data.val) else None
        temperature = fit_temperature(val, data.val.labels) if val is not None else None
        trained = sum(point.seconds for point in self.curve)
        return RunRecord(
            resfit=__version__,
            recipe=recipe.name,
            description=recipe.description,
            config=recipe.to_dict(),
            spec=recipe.spec.to_dict(),
            params=price.params,
            macs=price.macs,
            budget=recipe.budget,
            layers=tuple(layer_rows(price)),
            seed=self.seed,
            epochs=len(self.curve),
            device=self.device.type,
            precision=self.precision,
            env={
                **environment(self.device),
                "command": self.command,
                "kernels": list(self.kernels),
                "world_size": distributed.world_size(),
            },
            data=data.facts(),
            protocol={
                "selection": self.selection,
                "tta": recipe.evaluate.tta != "none",
                "tta_views": recipe.evaluate.tta,
                "tta_share": recipe.evaluate.tta_share,
                "test_scored": self.test_scored,
                "peeking": self.selection == "best-test",
                "best_epoch": self.best[1] if self.best and self.selection != "last" else None,
                "deviations": list(recipe.deviations),
            },
            seconds_to_result=seconds,
            seconds_saving=self.seconds_saving,
            images_per_second=sum(point.images or 0 for point in self.curve) / max(trained, 1e-9),
            val=score(val, data.val.labels, data.classes) if val is not None else None,
            test=score(logits, data.test.labels, data.classes, logits_tta=logits_tta, temperature=temperature),
            temperature=temperature,
            curve=tuple(self.curve),
            init=self.init,
            teachers=tuple(teacher for _, teacher in self.teachers),
            augmented=augmented_grid(data, recipe.augment, self.seed, self.trainer.fill),
            samples=samples(logits, data),
            events=tuple(self.events),
        )

    def _save_state(self) -> None:
        """Write the state, unless it exists already; raises Diverged rather than save what is not finite."""
        if self.saved == self._progress():
            return
        self.trainer.check_finite()
        began = time.perf_counter()
        if distributed.is_leader():
            if self.saved and not self.folder.is_dir():
                raise RunFailed(f"the run folder is gone ({self.folder}): start the run anew")
            save_state(self.folder / STATE, self._state())
        self.saved, ended = self._progress(), time.perf_counter()
        self.seconds_saving += ended - began
        self.save_due = ended + max(60 * self.recipe.train.checkpoint_minutes, (ended - began) / _SAVES_SHARE)

    def _progress(self) -> tuple[int, ...]:
        now = self.trainer.under_way
        return self.trainer.epoch, now.seen if now else 0, len(self.curve), len(self.events)

    def _state(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "recipe": self.recipe.to_dict(),
            **self.options,
            "trainer": self.trainer.state_dict(),
            "curve": [to_plain(point) for point in self.curve],
            "best": self.best and {"accuracy": self.best[0], "epoch": self.best[1], "weights": self.best[2]},
            "test_scored": self.test_scored,
            "seconds": self.seconds_before + time.perf_counter() - self.clock,
            "seconds_saving": self.seconds_saving,
            "precision": self.precision,
            "kernels": list(self.kernels),
            "data": self.data.digest,
            "world_size": distributed.world_size(),
            "events": self.events,
            "rollbacks": self.rollbacks,
            "command": self.command,
            "init": self.init and to_plain(self.init),
            "teachers": [teacher.sha256 for _, teacher in self.teachers],
        }

    def restore(self, state: dict[str, Any], *, override: bool) -> None:
        """Go on from a saved state; raises BadInput where the data is not what it was.

        Or where the precision or kernels are not, unless `override` accepts it.
        """
        if state["data"] != self.data.digest:
            raise BadInput(f"the data changed since the run began ({self.folder}): bring it back or start anew")
        began = " ".join((state["precision"], *state["kernels"]))
        here = " ".join((self.precision, *self.kernels))
        if began != here and not override:
            raise BadInput(
                f"the run was computed by {began}, and this machine would go on by {here} ({self.folder}): resume it "
                "on a machine of the same kind with the same resfit, or accept that with --override"
            )
        for (_, teacher), sha256 in zip(self.teachers, state["teachers"], strict=True):
            if teacher.sha256 != sha256:
                raise BadInput(f"another teacher than the run began with ({teacher.path}): bring that one back")
        self.init = state["init"] and GivenModel(**state["init"])
        self._go_back_to(state)
        self.test_scored, self.seconds_before = state["test_scored"], state["seconds"]
        self.seconds_saving = state["seconds_saving"]
        self.events, self.rollbacks = list(state["events"]), state["rollbacks"]
        self.command = state["command"]
        self.saved = self._progress()
        self.clock = time.perf_counter()
        before, now = state["world_size"], distributed.world_size()
        if before != now:
            self.note(f"{self.place}: went on in {_processes(now)}, after {_processes(before)}")
        if began != here:
            self.note(f"{self.place}: went on by {here}, after {began}")
        self.save_due = self.clock + 60 * self.recipe.train.checkpoint_minutes

    def _go_back_to(self, state: dict[str, Any]) -> None:
        """Take over what training changes; what the run spent on the way stays counted."""
        self.trainer.load_state_dict(state["trainer"])
        self.curve = [EpochPoint(**point) for point in state["curve"]]
        best = state["best"]
        self.best = (best["accuracy"], best["epoch"], best["weights"]) if best else None

    def _write_metrics(self) -> None:
        lines = [json.dumps(to_plain(point)) + "\n" for point in self.curve]
        if distributed.is_leader():
            write_atomic(self.folder / "metrics.jsonl", "".join(lines))

    def _append_metrics(self, point: EpochPoint) -> None:
        if distributed.is_leader():
            append_line(self.folder / "metrics.jsonl", json.dumps(to_plain(point)))


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def whiten_stem(net: Network, images: Tensor) -> None:
    """Set a whitening stem's filters from normalized training images [N, C, H, W]; other stems stay as they are."""
    for module in net.modules():
        if isinstance(module, FrozenConv):
            module.whiten(images)
