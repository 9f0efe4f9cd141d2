"""Runner: one run in progress. It trains, validates, saves its state, scores, and writes the run folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit import distributed, kernels
from resfit.checkpoint import STATE, newest_state, save_state
from resfit.cost import cost
from resfit.data import Dataset, Images
from resfit.data.normalize import normalizer
from resfit.device import DTYPES, autocast, usable_precision
from resfit.environment import environment
from resfit.errors import BadInput, Diverged, RunFailed
from resfit.evaluate import accuracy, fit_temperature, predict_logits, score
from resfit.fields import to_plain
from resfit.files import append_line, write_atomic
from resfit.history import Best, History
from resfit.interrupt import Interrupted, Interrupts
from resfit.layers import WhiteningConv
from resfit.machine import require_room
from resfit.modelfile import save_model
from resfit.modelheader import ModelInfo
from resfit.net import Network, build
from resfit.observer import Apart, Observer
from resfit.pretrained import begin_from, load_teacher
from resfit.recipe import Recipe
from resfit.record import EpochPoint, GivenModel, RunRecord, record_text
from resfit.recordparts import augmented_grid, layer_rows, samples
from resfit.report import write_report
from resfit.report.words import thread_count
from resfit.resume import STATE_FORMAT
from resfit.train import EpochResult, Trainer
from resfit.version import __version__

_SAVES_SHARE = 0.01  # maximum fraction of the time that is spent saving
_WHITENING_IMAGES = 5000
_WHITENING_PIXELS = 5000 * 32 * 32  # maximum: each pixel is part of kernel x kernel patches, so memory grows


@dataclass(kw_only=True)
class Runner:
    """One run in progress. `options` are the data folder and device as given by the user, kept for a resume."""

    recipe: Recipe
    seed: int
    data: Dataset
    folder: Path
    device: torch.device
    observer: Observer
    begin: str | Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    history: History = field(init=False, default_factory=History)
    interrupts: Interrupts = field(init=False, default_factory=Interrupts)

    def __post_init__(self) -> None:
        self.observer = Apart(self.observer, self.device)
        torch.manual_seed(self.seed)
        self.normalize = normalizer(self.data.mean, self.data.std, self.device)
        self.precision = distributed.broadcast(lambda: usable_precision(self.recipe.train.precision, self.device))
        on_cpu = self.device.type == "cpu"  # a compiled network is scored by them, too
        self.suited = kernels.suited(DTYPES[self.precision]) if on_cpu else ()
        self.kernels = kernels.in_use(DTYPES[self.precision]) if on_cpu else ()  # compiled off the clock
        if self.device.type == "cuda":
            needed = self.data.train.images.nbytes
            require_room("the training images on the GPU", needed, torch.cuda.mem_get_info(self.device)[0])
        images, labels = self.data.train.images.to(self.device), self.data.train.labels.to(self.device)
        self.clock = time.perf_counter()
        self.net = build(self.recipe.spec, self.recipe.init).to(self.device)
        count = max(1, min(_WHITENING_IMAGES, _WHITENING_PIXELS // images[0, 0].numel()))
        whiten_stem(self.net, images[:count], self.normalize)
        if self.begin is not None:
            self.history.init = begin_from(self.begin, self.net, self.data, self.recipe.data)
            self.observer.message(f"starting from {self.history.init}")
        distributed.broadcast_state(self.net)
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
        self.saved: tuple[int, ...] | None = None  # the progress in the saved state file
        self.save_due = 0.0  # in the time of time.perf_counter()

    def _load_teachers(self) -> list[tuple[nn.Module, GivenModel]]:
        distill, config = self.recipe.distill, self.recipe.data
        sides = [side for _, side in self.recipe.train.resize]
        targets = distill.teachers if distill else ()
        loaded = [load_teacher(target, self.net, self.data, config, sides) for target in targets]
        for _, teacher in loaded:
            self.observer.message(f"learning from {teacher}")
        return loaded

    @property
    def _selection(self) -> str:
        return self.recipe.evaluate.selection

    def validation_curve(self) -> tuple[EpochPoint, ...]:
        """Train and validate; write no files and do not score the test set."""
        self.save_due = math.inf
        self._tell_the_start()
        for result in self.trainer.epochs():
            self.history.curve.append(self._validated(result))
            self.observer.epoch_ended(self.history.curve[-1])
            if self._out_of_patience():
                break
        return tuple(self.history.curve)

    def _tell_the_start(self) -> None:
        self.observer.started(self.recipe, self.data, self.folder, self._note())
        for remark in self.recipe.remarks(len(self.data.train)):
            self.observer.message(remark)

    def _note(self) -> str:
        parts = [self.device.type, self.precision, thread_count(torch.get_num_threads())]
        parts += [] if distributed.is_single() else [f"{distributed.world_size()} processes"]
        parts += [f"kernels: {' '.join(self.kernels)}"] if self.kernels else []
        parts += ["faster kernels could not be compiled or cached"] if self.suited and not self.kernels else []
        return ", ".join(parts)

    def execute(self) -> RunRecord:
        """Train the remaining epochs, score the test set, and write the complete run folder."""
        began = time.perf_counter()
        self._tell_the_start()
        self.clock += time.perf_counter() - began  # opening a slow log does not count as run time
        self._write_metrics()
        self._save_state()
        while not self._trained():
            self._roll_back()
        self._between_steps()
        record = self._finish()
        self.observer.finished(record)
        asked, _ = self._agree()  # no process may end before the folder is complete: torchrun ends all when one fails
        if asked:
            raise Interrupted(asked, f"the run is finished ({self.folder})")
        return record

    def _trained(self) -> bool:
        """Train the remaining epochs; return False if training diverged and the recipe allows another rollback."""
        epochs = () if self._out_of_patience() else self.trainer.epochs()
        try:
            for result in epochs:
                point = self._validated(result)
                self.history.curve.append(point)
                self._append_metrics(point)
                self.observer.epoch_ended(point)
                self._between_steps()
                if self._out_of_patience() and point.epoch < self.recipe.train.epochs:
                    n = self.recipe.train.patience
                    self.observer.message(f"stopped early: no improvement in {n} {'epoch' if n == 1 else 'epochs'}")
                    break
            self._save_state()
        except Diverged as error:
            if self.history.rollbacks >= self.recipe.train.rollbacks:
                raise
            self.observer.message(str(error))
            return False
        return True

    def _roll_back(self) -> None:
        """Restore the last saved state, which is finite, and continue with lower learning rates."""
        diverged, factor = self.place, self.recipe.train.rollback_factor
        state = distributed.broadcast(lambda: newest_state(self.folder, self.observer.message))
        self.trainer.load_state_dict(state["trainer"])
        self.history.go_back_to(History.from_state(state))
        self.trainer.slow_down(factor)
        self.note(
            f"{diverged}: not finite; went back to {self.place}, with all learning rates multiplied by {factor:g}"
        )
        self._write_metrics()
        self._save_state()

    def note(self, line: str) -> None:
        """Add an event to the record, and show it to the user."""
        self.history.events.append(line)
        self.observer.message(line)

    @property
    def place(self) -> str:
        """The current position in training, in words."""
        now = self.trainer.under_way
        return f"epoch {self.trainer.epoch + 1}, image {now.seen:,}" if now else f"epoch {self.trainer.epoch + 1}"

    def _stepped(self, epoch: int, done: float) -> None:
        self.observer.stepped(epoch, done)
        self._between_steps()

    def _between_steps(self) -> None:
        """Save the state if it is due, and stop if a signal asked for it."""
        asked, due = self._agree()
        if asked or due:
            self._save_state()
        if asked:
            distributed.barrier()  # torchrun ends all processes when one ends
            raise Interrupted(asked, f"continue with resfit train --resume {self.folder}")

    def _agree(self) -> tuple[int, ...]:
        """Return, agreed among all processes, the number of a received signal (or 0) and whether a save is due."""
        due = distributed.is_main() and time.perf_counter() > self.save_due
        return distributed.all_reduce_max(self.interrupts.asked or 0, due)

    def _validated(self, result: EpochResult) -> EpochPoint:
        """Validate if due, keep the weights if they are the best so far, and return the epoch's point on the curve."""
        config, last = self.recipe.evaluate, result.epoch == self.recipe.train.epochs
        val_loss = val_accuracy = test_accuracy = None
        if len(self.data.val) and (result.epoch % config.every == 0 or last):
            val_loss, val_accuracy = self._loss_and_accuracy(self.data.val)
        if self._selection == "best-test":
            _, test_accuracy = self._loss_and_accuracy(self.data.test)
            self.history.test_scored += 1
        judged = test_accuracy if self._selection == "best-test" else val_accuracy
        if judged is not None and (self.history.best is None or judged > self.history.best.accuracy):
            keep = {} if self._selection == "last" else self.trainer.evaluated.state_dict()
            weights = {name: value.clone() for name, value in keep.items()}
            self.history.best = Best(accuracy=judged, epoch=result.epoch, weights=weights)
        return EpochPoint(
            epoch=result.epoch,
            train_loss=result.loss,
            train_accuracy=result.accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            test_accuracy=test_accuracy,
            lr=result.lr,
            seconds=result.seconds,
            images=result.images,
        )

    def _out_of_patience(self) -> bool:
        patience = self.recipe.train.patience
        if not (patience and self.history.best and self.history.curve):
            return False
        judged = self.history.curve[-1].val_accuracy is not None or self.history.curve[-1].test_accuracy is not None
        return judged and self.trainer.epoch - self.history.best.epoch >= patience

    def _logits(self, part: Images, tta: bool = False) -> tuple[Tensor, Tensor | None]:
        config = self.recipe.evaluate
        try:
            with autocast(self.precision, self.device):
                return predict_logits(
                    self.trainer.evaluated,
                    part.images,
                    self.normalize,
                    tta=config.tta if tta else "none",
                    tta_share=config.tta_share,
                    batch_size=config.batch_size,
                )
        except torch.OutOfMemoryError:
            raise RunFailed(
                "out of memory while scoring (evaluate.batch_size): continue with a smaller one: resfit train "
                f"--resume {self.folder} --evaluate.batch_size {max(1, config.batch_size // 4)} --override"
            ) from None

    def _loss_and_accuracy(self, part: Images) -> tuple[float, float]:
        logits, _ = self._logits(part)
        labels = part.labels.cpu()
        return F.cross_entropy(logits, labels).item(), accuracy(logits, labels)

    def _finish(self) -> RunRecord:
        """Score the selected weights on the test set, once, and write model, record and report."""
        if self._selection != "last" and self.history.best is not None:
            self.trainer.evaluated.load_state_dict(self.history.best.weights)
        logits, logits_tta = self._logits(self.data.test, tta=True)
        self.history.test_scored += 1
        record = self._record(logits, logits_tta, self._seconds())
        if distributed.is_main():
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
        """Build the record from the logits of the test set."""
        recipe, data, price = self.recipe, self.data, cost(self.recipe.spec)
        val = self._logits(data.val)[0] if len(data.val) else None
        temperature = fit_temperature(val, data.val.labels) if val is not None else None
        trained = sum(point.seconds for point in self.history.curve)
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
            epochs=len(self.history.curve),
            device=self.device.type,
            precision=self.precision,
            env=self._environment(),
            data=data.facts(),
            protocol=self._protocol(),
            seconds_to_result=seconds,
            seconds_saving=self.history.seconds_saving,
            images_per_second=sum(point.images or 0 for point in self.history.curve) / max(trained, 1e-9),
            val=score(val, data.val.labels, data.classes) if val is not None else None,
            test=score(logits, data.test.labels, data.classes, logits_tta=logits_tta, temperature=temperature),
            temperature=temperature,
            curve=tuple(self.history.curve),
            init=self.history.init,
            teachers=tuple(teacher for _, teacher in self.teachers),
            augmented=augmented_grid(data, recipe.augment, self.seed, self.trainer.fill),
            samples=samples(logits, data),
            events=tuple(self.history.events),
        )

    def _environment(self) -> dict[str, Any]:
        here = {"kernels": list(self.kernels), "world_size": distributed.world_size()}
        return {**environment(self.device), "command": self.history.command, **here}

    def _protocol(self) -> dict[str, Any]:
        how, best = self.recipe.evaluate, self.history.best
        return {
            "selection": how.selection,
            "tta": how.tta != "none",
            "tta_views": how.tta,
            "tta_share": how.tta_share,
            "test_scored": self.history.test_scored,
            "peeking": how.selection == "best-test",
            "best_epoch": best.epoch if best and how.selection != "last" else None,
            "deviations": list(self.recipe.deviations),
        }

    def _save_state(self) -> None:
        """Save the state unless this progress is saved already; raise Diverged if it is not finite."""
        if self.saved == self._place_saved():
            return
        self.trainer.check_finite()
        began = time.perf_counter()
        if distributed.is_main():
            if self.saved and not self.folder.is_dir():
                raise RunFailed(f"the run folder no longer exists ({self.folder}): start the run again")
            save_state(self.folder / STATE, self._state())
        self.saved, ended = self._place_saved(), time.perf_counter()
        self.history.seconds_saving += ended - began
        self.save_due = ended + max(60 * self.recipe.train.checkpoint_minutes, (ended - began) / _SAVES_SHARE)

    def _seconds(self) -> float:
        """Return the run's time so far, summed over all processes that it was resumed in."""
        return self.history.seconds + time.perf_counter() - self.clock

    def _place_saved(self) -> tuple[int, ...]:
        now = self.trainer.under_way
        return self.trainer.epoch, now.seen if now else 0, len(self.history.curve), len(self.history.events)

    def _state(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "recipe": self.recipe.to_dict(),
            **self.options,
            "trainer": self.trainer.state_dict(),
            **replace(self.history, seconds=self._seconds()).state_dict(),
            "precision": self.precision,
            "kernels": list(self.kernels),
            "data": self.data.digest,
            "world_size": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "teachers": [teacher.sha256 for _, teacher in self.teachers],
        }

    def restore(self, state: dict[str, Any], *, override: bool) -> None:
        """Continue from a saved state; raise BadInput if the data or the teachers changed.

        A change of precision or kernels also raises BadInput, unless `override` accepts it.
        """
        if state["data"] != self.data.digest:
            raise BadInput(f"the data has changed since the run began ({self.folder}): restore it, or start a new run")
        began = " ".join((state["precision"], *state["kernels"]))
        here = " ".join((self.precision, *self.kernels))
        if began != here and not override:
            raise BadInput(
                f"the run was computed with {began}, but this machine would continue with {here} "
                f"({self.folder}): resume it on the same kind of machine with the same version of resfit, or "
                "add --override to resfit train --resume to accept the change"
            )
        for (_, teacher), sha256 in zip_longest(self.teachers, state["teachers"], fillvalue=(None, None)):
            if teacher is None or teacher.sha256 != sha256:
                where = teacher.path if teacher else "distill.teacher"
                raise BadInput(f"the teacher has changed since the run began ({where}): restore the original one")
        self.trainer.load_state_dict(state["trainer"])
        self.history = History.from_state(state)
        self.saved = self._place_saved()
        self.clock = time.perf_counter()
        before, now = state["world_size"], distributed.world_size()
        threads_before, threads = state.get("threads"), torch.get_num_threads()
        if before != now:
            self.note(f"{self.place}: resumed in {_processes(now)} instead of {_processes(before)}")
        elif threads_before not in (threads, None) and self.device.type == "cpu":  # sums are in another order then
            self.note(f"{self.place}: resumed with {thread_count(threads)} instead of {thread_count(threads_before)}")
        if began != here:
            self.note(f"{self.place}: resumed with {here} instead of {began}")
        self.save_due = self.clock + 60 * self.recipe.train.checkpoint_minutes

    def _write_metrics(self) -> None:
        lines = [json.dumps(to_plain(point)) + "\n" for point in self.history.curve]
        if distributed.is_main():
            write_atomic(self.folder / "metrics.jsonl", "".join(lines))

    def _append_metrics(self, point: EpochPoint) -> None:
        if distributed.is_main():
            append_line(self.folder / "metrics.jsonl", json.dumps(to_plain(point)))


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def whiten_stem(net: Network, images: Tensor, normalize: Callable[[Tensor], Tensor]) -> None:
    """Set the filters of a whitening stem from uint8 training images [N, C, H, W]; other stems are unchanged."""
    for module in net.modules():
        if isinstance(module, WhiteningConv):
            module.whiten(normalize(images))
