"""The training loop. It yields a state an epoch; validation, files and stopping are its caller's business.

Shapes: N images, C channels, H x W pixels, K classes. Images are uint8 and stay on the device.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.augment import augment, mix
from resfit.averaging import WeightAverage
from resfit.distill import distillation_loss, soft_targets
from resfit.errors import RunFailed
from resfit.optim import check_gradients, lr_factor, make_optimizers, set_learning_rates
from resfit.recipe import Recipe
from resfit.sharpness import perturbed
from resfit.skipping import EasyImages

_STEPS_BETWEEN_CHECKS = 50  # reading the loss makes the host wait for the device


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One epoch's training in numbers: mean loss, accuracy on the augmented images, final learning rate, seconds."""

    epoch: int
    loss: float
    accuracy: float
    lr: float
    seconds: float
    images: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one forward pass takes.

    inputs: float [N, C, H, W]; targets: labels [N], or mixed [N, K]; soft: the teachers' probabilities [N, K]; share:
    its part of the images of its optimizer step.
    """

    inputs: Tensor
    targets: Tensor
    soft: Tensor | None
    share: float


@dataclass(kw_only=True)
class Trainer:
    """Everything that training changes: what has to be saved for an exact resume is `state_dict`.

    `images` uint8 [N, C, H, W] and `labels` int64 [N] lie on the device of `net`; `normalize` takes a uint8 batch to
    the network's input; `teachers` take that input to logits, as `net` does; `on_step` hears the epoch under way and
    the part of it that is done.
    """

    net: nn.Module
    recipe: Recipe
    images: Tensor
    labels: Tensor
    normalize: Callable[[Tensor], Tensor]
    seed: int
    precision: str = "fp32"
    fill: Tensor | None = None
    teachers: Sequence[nn.Module] = ()
    on_step: Callable[[int, float], None] = lambda epoch, done: None
    epoch: int = 0
    forward: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        config = self.recipe.train
        self.device = self.images.device
        self.optimizers = make_optimizers(self.net, self.recipe.optim)
        average = self.recipe.average
        self.average = None if average.name == "none" else WeightAverage(self.net, average)
        self.easy = EasyImages(len(self.images), config.skip_easy, self.device) if config.skip_easy else None
        self._in_step: list[Batch] = []  # what sharpness-aware minimization goes over once more
        for teacher in self.teachers:
            teacher.eval().requires_grad_(False)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.generator = torch.Generator().manual_seed(self.seed)
        self.forward = torch.compile(self.net) if config.compile else self.net

    @property
    def evaluated(self) -> nn.Module:
        """The network whose weights count: the average, where there is one yet, ready to be evaluated."""
        if self.average is None or not self.average.begun:
            return self.net
        if self.average.needs_statistics:
            with self._autocast():
                self.average.estimate_statistics(self._batches_apart())
        return self.average.module

    def epochs(self) -> Iterator[EpochResult]:
        """Train from the current epoch to the last, yielding after each; RunFailed when the loss is not finite."""
        while self.epoch < self.recipe.train.epochs:
            yield self.train_epoch()

    def train_epoch(self) -> EpochResult:
        """One pass over the training images."""
        started = time.perf_counter()
        self.net.train()
        self._freeze_stem()
        groups = self._step_groups()
        loss_sum, right, seen = torch.zeros((), device=self.device), torch.zeros((), device=self.device), 0
        for n, group in enumerate(groups):
            images_in_step, progress = sum(map(len, group)), self._progress(n / len(groups))
            self._set_rates(progress)
            for index in group:
                loss, hits = self._backward(index, len(index) / images_in_step, progress)
                loss_sum += loss * len(index)
                right += hits
            self._step()
            self._average((n + 1) / len(groups))
            seen += images_in_step
            self.on_step(self.epoch + 1, (n + 1) / len(groups))
            if n % _STEPS_BETWEEN_CHECKS == 0:
                self._check_finite(loss_sum)
        self._check_finite(loss_sum)
        self.epoch += 1
        return EpochResult(
            epoch=self.epoch,
            loss=loss_sum.item() / seen,
            accuracy=right.item() / seen,
            lr=self.optimizers[0].param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
            images=seen,
        )

    def _backward(self, index: Tensor, share: float, progress: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of the batch at `index`, weighted by its share of the step; its mean loss and its hits."""
        inputs, targets = self.batch(index, self.generator, progress=progress)
        distill, soft = self.recipe.distill, None
        if distill:
            with self._autocast():
                soft = soft_targets(self.teachers, inputs, distill.temperature)
        batch = Batch(inputs=inputs, targets=targets, soft=soft, share=share)
        if self.recipe.optim.sam:
            self._in_step.append(batch)
        loss, logits = self._add_gradient(batch)
        if self.easy is not None:
            self.easy.remember(index, logits, self.labels[index])
        return loss, (logits.argmax(1) == self.labels[index]).sum()

    def _add_gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the batch's gradient, weighted by its share of the step; its mean loss and its logits."""
        with self._autocast():
            logits = self.forward(batch.inputs)
            loss = self._loss(logits, batch)
        self.scaler.scale(loss * batch.share).backward()
        return loss.detach(), logits.detach()

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        of_labels = F.cross_entropy(logits, batch.targets, label_smoothing=self.recipe.train.label_smoothing)
        distill = self.recipe.distill
        if distill is None or batch.soft is None:
            return of_labels
        of_teachers = distillation_loss(logits, batch.soft, distill.temperature)
        return (1 - distill.weight) * of_labels + distill.weight * of_teachers

    def _sharpen(self) -> None:
        """Replace the step's gradient by the one at the worst weights nearby, from the same batches."""
        if self.recipe.optim.sam:
            with perturbed(self.net, self.recipe.optim.sam):
                for batch in self._in_step:
                    self._add_gradient(batch)
            self._in_step.clear()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32")

    def warm_up(self) -> float:
        """Seconds that it took to compile the network for every image size of the recipe; leaves no trace of it."""
        if not self.recipe.train.compile:
            return 0.0
        started, saved = time.perf_counter(), copy.deepcopy(self.state_dict())
        index = torch.arange(min(self.recipe.train.batch_size, len(self.images)), device=self.device)
        self.net.train()
        for progress in {0.0, *(start for start, _ in self.recipe.train.resize)}:
            self._backward(index, 1.0, progress)
            self._sharpen()
        self.net.zero_grad(set_to_none=True)
        self.load_state_dict(saved)
        return time.perf_counter() - started

    def _step_groups(self) -> list[list[Tensor]]:
        """This epoch's order of images as batches, those that share an optimizer step together."""
        together = self.recipe.train.accumulate
        batches = self._batches(self._trained_on(self._shuffled(self.generator)))
        return [batches[n : n + together] for n in range(0, len(batches), together)]

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.images), generator=generator).to(self.device)

    def _trained_on(self, order: Tensor) -> Tensor:
        """The images of `order` that this epoch trains on."""
        skipping = self.epoch > 0 and self._progress(0.0) < self.recipe.train.skip_easy_until
        return self.easy.leave_out(order) if self.easy is not None and skipping else order

    def _batches(self, order: Tensor) -> list[Tensor]:
        """`order` in batches; with `drop_last` the partial one is left out, unless it is all there is."""
        config = self.recipe.train
        whole, rest = divmod(len(order), config.batch_size)
        return list(order.split(config.batch_size)[: whole + (rest > 0 and not (config.drop_last and whole > 0))])

    def _set_rates(self, progress: float) -> None:
        epochs = self.recipe.train.epochs
        set_learning_rates(self.optimizers, lr_factor(self.recipe.schedule, progress * epochs, epochs))

    def _progress(self, done: float) -> float:
        """The part of the whole training that is over when `done` of this epoch is."""
        return (self.epoch + done) / self.recipe.train.epochs

    def _batches_apart(self) -> Iterator[Tensor]:
        """Augmented, normalized images of an epoch at their last size, drawn apart from those of training."""
        generator = torch.Generator().manual_seed(self.seed)
        for index in self._batches(self._shuffled(generator)):
            yield self.batch(index, generator, progress=1.0)[0]

    def batch(self, index: Tensor, generator: torch.Generator, *, progress: float) -> tuple[Tensor, Tensor]:
        """The augmented, normalized images [N, C, H, W] at `index`, and their targets: labels [N], or mixed [N, K]."""
        config, labels = self.recipe.augment, self.labels[index]
        images = augment(
            self.images[index],
            config,
            generator,
            index=index,
            epoch=self.epoch,
            seed=self.seed,
            fill=self.fill,
        )
        inputs = _resized(self.normalize(images), self.recipe.train.resize, progress)
        if not config.mixes:
            return inputs, labels
        return mix(inputs, F.one_hot(labels, self.recipe.spec.num_classes).float(), config, generator)

    def _step(self) -> None:
        if self.epoch == 0 and not self.optimizers[0].state:
            check_gradients(self.net)
        self._sharpen()
        if self.recipe.train.clip:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.train.clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()

    def _average(self, done: float) -> None:
        if self.average is not None:
            self.average.step_ended(self.net, self._progress(done), epoch_ended=done == 1.0)

    def _freeze_stem(self) -> None:
        limit = self.recipe.train.freeze_stem_after
        if limit is not None and self.epoch >= limit:
            self.net.get_submodule("stem").requires_grad_(False)

    def _check_finite(self, loss_sum: Tensor) -> None:
        if not torch.isfinite(loss_sum):
            raise RunFailed(
                f"the training loss is not finite (epoch {self.epoch + 1}): lower optim.lr or give train.clip; "
                "the last finite weights are kept"
            )

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs, at an epoch's end."""
        return {
            "epoch": self.epoch,
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "losses": self.easy.losses if self.easy is not None else None,
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.epoch = state["epoch"]
        self.net.load_state_dict(state["net"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.easy is not None:
            self.easy.losses.copy_(state["losses"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _resized(images: Tensor, resize: tuple[tuple[float, int], ...], progress: float) -> Tensor:
    """The batch at the side that `resize` says for this progress through training (progressive resizing)."""
    sides = [side for start, side in resize if start <= progress]
    if not sides or sides[-1] == images.shape[-1]:
        return images
    small = F.interpolate(images, size=(sides[-1], sides[-1]), mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)


def usable_precision(wanted: str, device: torch.device) -> str:
    """The precision to train in. auto: bf16 where a convolution is clearly faster in it than in fp32, as timed here."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _conv_seconds(torch.bfloat16) < 0.8 * _conv_seconds(torch.float32) else "fp32"


def _conv_seconds(dtype: torch.dtype) -> float:
    """Best time of three of a small convolution on the CPU."""
    images = torch.ones(32, 64, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    filters = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.no_grad():
        for _ in range(4):
            started = time.perf_counter()
            F.conv2d(images, filters, padding=1)
            times.append(time.perf_counter() - started)
    return min(times[1:])
