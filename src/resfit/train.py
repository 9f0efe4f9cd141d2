"""Trainer: the training loop. It yields one result per epoch; its caller validates, writes files and decides to stop.

Shapes: N images, C channels, H x W pixels, K classes. Images are uint8 and stay on the device.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit import distributed
from resfit.augment import augment, flip_coins, mix
from resfit.averaging import WeightAverage
from resfit.device import autocast
from resfit.distill import distillation_loss, soft_targets
from resfit.errors import Diverged, RunFailed
from resfit.optim import check_gradients, lr_factor, make_optimizers
from resfit.recipe import Recipe
from resfit.sharpness import perturbed
from resfit.skipping import EasyImages

_STEPS_BETWEEN_CHECKS = 50  # reading the loss synchronizes the host with the device


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """Metrics of one training epoch: mean loss, accuracy on augmented images, the last learning rate, seconds, images.

    For a mixed image, the accuracy counts the weight that the predicted class has in its target, as the original mixup
    and RICAP code does.
    """

    epoch: int
    loss: float
    accuracy: float
    lr: float
    seconds: float
    images: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The inputs and targets of one forward pass.

    inputs: float [N, C, H, W]; targets: labels [N], or mixed [N, K]; soft: the teachers' probabilities [N, K], or None;
    share: the batch's fraction of the images in its optimizer step.
    """

    inputs: Tensor
    targets: Tensor
    soft: Tensor | None
    share: float


@dataclass(kw_only=True, eq=False)
class EpochProgress:
    """The progress of an unfinished epoch: the image order, int64 [N], how many images are done, and their sums.

    `began` is its start in the time of time.perf_counter(), moved as if the epoch had never been interrupted.
    """

    order: Tensor
    loss_sum: Tensor
    hits: Tensor
    began: float
    seen: int = 0


@dataclass(kw_only=True)
class Trainer:
    """A network in training with its optimizers, random generators and progress; `state_dict` allows an exact resume.

    `images` uint8 [N, C, H, W] and `labels` int64 [N] are on the device of `net`; `normalize` converts a uint8 batch to
    the network's input; `teachers` map that input to logits, as `net` does. `on_step` is called after each optimizer
    step with the current epoch and its finished fraction; it may save the state, and it may raise. `on_note` gets
    messages for the user, one line each. `rate` multiplies all learning rates. Each batch goes through the network in
    `pieces` parts.
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
    on_note: Callable[[str], None] = lambda line: None
    epoch: int = 0
    under_way: EpochProgress | None = None
    rate: float = 1.0
    pieces: int = 1
    forward: Callable[[Tensor], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        config = self.recipe.train
        self.device = self.images.device
        self.optimizers = make_optimizers(self.net, self.recipe.optim, self.precision)
        average = self.recipe.average
        self.average = None if average.name == "none" else WeightAverage(self.net, average)
        self.easy = EasyImages(len(self.images), config.skip_easy, self.device) if config.skip_easy else None
        everyone = torch.arange(len(self.images), device=self.device)
        self.coins = flip_coins(everyone, self.seed) if self.recipe.augment.flip == "alternating" else None
        self._in_step: list[Batch] = []  # the batches of the step, for the second pass of sharpness-aware minimization
        for teacher in self.teachers:
            teacher.eval().requires_grad_(False)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.generator = torch.Generator().manual_seed(self.seed)
        # Compiled per input size: with dynamic shapes, Inductor would not choose the memory layout.
        self.forward = torch.compile(self.net, dynamic=False) if config.compile else self.net

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate: the weight average once it has begun, with its statistics estimated, else `net`."""
        if self.average is None or not self.average.begun:
            return self.net
        if self.average.needs_statistics:
            with autocast(self.precision, self.device):
                self.average.estimate_statistics(self._batches_apart())
        return self.average.module

    def epochs(self) -> Iterator[EpochResult]:
        """Train until the last epoch, yielding after each; raises Diverged if the loss is not finite."""
        while self.epoch < self.recipe.train.epochs:
            yield self.train_epoch()

    def train_epoch(self) -> EpochResult:
        """Train on all images once, or on the rest of the epoch in progress."""
        self.net.train()
        self._freeze()
        now = self.under_way = self.under_way or self._begin_epoch()
        groups, done = self._step_groups(self._left(now.order, now.seen)), self._steps_done()
        steps = done + len(groups)
        for n, group in enumerate(groups, start=done):
            progress = self._progress(n / steps)
            self._set_rates(n / steps)
            distributed.seed_this_rank(self.seed, self.epoch, n)
            loss_sum, hits = self._gradients(group, progress)
            self._step()
            self._average((n + 1) / steps)
            now.loss_sum += loss_sum
            now.hits += hits
            now.seen += sum(map(len, group))
            if n % _STEPS_BETWEEN_CHECKS == 0:
                self._check_loss()
            self.on_step(self.epoch + 1, (n + 1) / steps)
        self._check_loss()
        if not groups:  # resumed after the last step: report the learning rate of that step
            last = len(self._step_groups(self._left(now.order)))
            self._set_rates((last - 1) / last)
        if self.easy is not None:
            self.easy.turns[now.order[: now.seen]] += 1
        self.epoch, self.under_way = self.epoch + 1, None
        return EpochResult(
            epoch=self.epoch,
            loss=now.loss_sum.item() / now.seen,
            accuracy=now.hits.item() / now.seen,
            lr=self.optimizers.param_groups[0]["lr"],
            seconds=time.perf_counter() - now.began,
            images=now.seen,
        )

    def _begin_epoch(self) -> EpochProgress:
        began, zero = time.perf_counter(), torch.zeros((), device=self.device)
        order = self._trained_on(self._shuffled(self.generator))
        return EpochProgress(order=order, loss_sum=zero, hits=zero.clone(), began=began)

    def _steps_done(self) -> int:
        """Return the finished optimizer steps of the current epoch, counted in steps of the current batch size."""
        seen = self.under_way.seen if self.under_way else 0
        return -(-seen // (self.recipe.train.batch_size * self.recipe.train.accumulate))

    def _gradients(self, group: list[Tensor], progress: float) -> tuple[Tensor, Tensor]:
        """Accumulate a step's gradients, in smaller pieces if out of memory; return its summed loss and hits."""
        while True:
            try:
                images = sum(map(len, group))
                sums = [self._backward(index, len(index) / images, progress) for index in group]
                distributed.sum_gradients(self.net)
                self._sharpen()
                return sum(loss for loss, _ in sums), sum(hits for _, hits in sums)  # type: ignore[return-value]
            except torch.OutOfMemoryError:
                pass  # leaving the handler frees the tensors of the failed attempt
            self._halve_pieces()

    def _backward(self, index: Tensor, share: float, progress: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of the batch at `index`, weighted by its share of the step; return its summed loss and hits.

        With several processes, each one computes its own shard of every piece.
        """
        inputs, targets = self.batch(index, self.generator, progress=progress)
        losses, logits = [], []
        for piece, wanted in zip(self._pieces(inputs), self._pieces(targets), strict=True):
            own = distributed.shard(len(piece))
            mine = piece[own]
            part = share * (len(mine) / len(inputs))
            batch = Batch(inputs=mine, targets=wanted[own], soft=self._soft_targets(mine), share=part)
            if self.recipe.optim.sam:
                self._in_step.append(batch)
            loss, of_piece = self._add_gradient(batch)
            losses.append(loss * len(mine) if len(mine) else loss.new_zeros(()))
            logits.append(distributed.all_gather_rows(of_piece, len(piece)))
        whole, labels = torch.cat(logits), self.labels[index]
        if self.easy is not None:
            self.easy.remember(index, whole, labels)
        return distributed.all_reduce_sum(torch.stack(losses).sum()), _hits(whole, targets)

    def _pieces(self, batch: Tensor) -> Sequence[Tensor]:
        """Split a batch into parts for the network, of at least two images each, as batch norm needs two."""
        return batch.tensor_split(max(1, min(self.pieces, len(batch) // 2)))

    def _soft_targets(self, inputs: Tensor) -> Tensor | None:
        distill = self.recipe.distill
        if distill is None:
            return None
        with autocast(self.precision, self.device):
            return soft_targets(self.teachers, inputs, distill.temperature)

    def _halve_pieces(self) -> None:
        """Halve the piece size for another attempt at the step; batch norms then see fewer images at a time.

        Raises RunFailed if the pieces cannot get smaller, or with several processes.
        """
        if not distributed.is_single():  # the other processes are waiting in the middle of the step
            raise RunFailed(
                "out of memory in one of several processes (train.batch_size): give a smaller one with more "
                "train.accumulate, or more processes"
            )
        self.net.zero_grad(set_to_none=True)
        self._in_step.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        batch_size, self.pieces = self.recipe.train.batch_size, 2 * self.pieces
        if 2 * self.pieces > batch_size:
            raise RunFailed("out of memory with two images (train.batch_size): use a smaller network or smaller images")
        self.on_note(
            f"epoch {self.epoch + 1}: out of memory; from now on, batches of {batch_size} are processed in "
            f"{self.pieces} pieces, still with one optimizer step each"
        )

    def _add_gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the batch's gradient, weighted by its share of the step; return its mean loss and its logits."""
        with autocast(self.precision, self.device):
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
        """Replace the step's gradient by the gradient at the worst nearby weights, from the same batches."""
        if self.recipe.optim.sam:
            with perturbed(self.net, self.recipe.optim.sam):
                for batch in self._in_step:
                    self._add_gradient(batch)
            distributed.sum_gradients(self.net)
            self._in_step.clear()

    def warm_up(self) -> float:
        """Compile the network for all batch sizes, image sizes and sets of trained layers; return the seconds it took.

        Afterwards the training state is restored, except `pieces`.
        """
        if not self.recipe.train.compile:
            return 0.0
        started, saved = time.perf_counter(), copy.deepcopy(self.state_dict())
        every = torch.arange(len(self.images), device=self.device)
        orders = [every, every[: len(every) - self.easy.skipped]] if self.easy is not None else [every]
        of_each_size = {len(batch): batch for order in orders for batch in self._batches(self._left(order))}
        combinations = list(product(self._turning_points(), of_each_size.values()))
        limits = torch._dynamo.config  # beyond the limit torch would compute uncompiled
        limits.recompile_limit = max(limits.recompile_limit, len(combinations))
        self.net.train()
        for (epoch, progress), batch in combinations:
            self.epoch = epoch
            self._freeze()
            self._gradients([batch], progress)
        self.net.zero_grad(set_to_none=True)
        self.load_state_dict({**saved, "pieces": self.pieces})
        return time.perf_counter() - started

    def _turning_points(self) -> list[tuple[int, float]]:
        """Return (epoch, fraction of training) pairs at which the image size or the set of trained layers changes."""
        config = self.recipe.train
        stem = [] if config.freeze_stem_after is None else [math.ceil(config.freeze_stem_after)]
        frozen = {0, *stem, *(math.ceil(start * config.epochs) for start, _ in config.freeze)}
        turns = [(epoch, epoch / config.epochs) for epoch in frozen if epoch < config.epochs]
        return sorted({*turns, *((int(start * config.epochs), start) for start, _ in config.resize)})

    def _step_groups(self, order: Tensor) -> list[list[Tensor]]:
        """Split an epoch's image order into batches, grouped by optimizer step."""
        together, batches = self.recipe.train.accumulate, self._batches(order)
        return [batches[n : n + together] for n in range(0, len(batches), together)]

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.images), generator=generator).to(self.device)

    def _trained_on(self, order: Tensor) -> Tensor:
        """Return the images of `order` to train on in this epoch, without the easy ones to be skipped."""
        skipping = self.epoch > 0 and self._progress(0.0) < self.recipe.train.skip_easy_until
        return self.easy.leave_out(order) if self.easy is not None and skipping else order

    def _left(self, order: Tensor, seen: int = 0) -> Tensor:
        """Return `order` from `seen` on; `drop_last` drops a partial batch, unless it is the epoch's only batch."""
        config, left = self.recipe.train, order[seen:]
        partial = len(left) % config.batch_size
        return left[: len(left) - partial] if config.drop_last and partial < len(order) else left

    def _batches(self, order: Tensor) -> list[Tensor]:
        """Split `order` into batches. A single last image joins the previous batch, as batch norm needs two."""
        size = self.recipe.train.batch_size
        batches = list(order.split(size)) if len(order) else []
        if len(batches) > 1 and len(batches[-1]) == 1 < size:
            last = batches.pop()
            batches[-1] = torch.cat((batches[-1], last))
        return batches

    def _set_rates(self, done: float) -> None:
        """Set the learning rates for the point where the fraction `done` of this epoch is over."""
        # In epochs, like milestones: rounding a fraction of the training could apply a milestone one step late.
        epoch, epochs = self.epoch + done, self.recipe.train.epochs
        self.optimizers.set_rates(self.rate * lr_factor(self.recipe.schedule, epoch, epochs))

    def _progress(self, done: float) -> float:
        """Return the fraction of the whole training that is over when `done` of this epoch is."""
        return (self.epoch + done) / self.recipe.train.epochs

    def _batches_apart(self) -> Iterator[Tensor]:
        """Yield an epoch of augmented, normalized images at their final size, without using the training's generator.

        With several processes, each one gets its shard of every batch.
        """
        generator = torch.Generator().manual_seed(self.seed)
        for index in self._batches(self._left(self._shuffled(generator))):
            yield self.batch(index, generator, progress=1.0)[0][distributed.shard(len(index))]

    def batch(self, index: Tensor, generator: torch.Generator, *, progress: float) -> tuple[Tensor, Tensor]:
        """Return the augmented, normalized images [N, C, H, W] at `index`, and targets: labels [N], or mixed [N, K]."""
        config, labels = self.recipe.augment, self.labels[index]
        images = augment(
            self.images[index],
            config,
            generator,
            coins=None if self.coins is None else self.coins[index],
            # An easy image is skipped every other epoch: by epoch number it would always have the same flip.
            epoch=self.epoch if self.easy is None else self.easy.turns[index],
            fill=self.fill,
        )
        inputs = self.normalize(_resized(images, self.recipe.train.resize, progress))
        if not config.mixes:
            return inputs, labels
        return mix(inputs, F.one_hot(labels, self.recipe.spec.num_classes).float(), config, generator)

    def _step(self) -> None:
        if self.epoch == 0 and not self.optimizers[0].state:
            check_gradients(self.net)
        optimizers: Any = self.optimizers  # provides what a GradScaler needs of an optimizer
        if self.recipe.train.clip:
            self.scaler.unscale_(optimizers)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.train.clip)
        self.scaler.step(optimizers)
        self.scaler.update()
        optimizers.zero_grad()

    def _average(self, done: float) -> None:
        if self.average is not None:
            self.average.step_ended(self.net, self._progress(done), epoch_ended=done == 1.0)

    def _freeze(self) -> None:
        """Freeze or unfreeze the stem and stages for this epoch; frozen norms still update their running statistics."""
        config, begun = self.recipe.train, self._progress(0.0)
        counts, limit = [count for start, count in config.freeze if start <= begun], config.freeze_stem_after
        if config.freeze or limit is not None:
            self.net.get_submodule("stem").requires_grad_(not counts and (limit is None or self.epoch < limit))
        if config.freeze:
            for n, stage in enumerate(self.net.get_submodule("stages").children()):
                stage.requires_grad_(n >= max(counts, default=0))

    def check_finite(self) -> None:
        """Raise Diverged if a weight, a buffer or the loss so far is not finite. Synchronizes with the device."""
        self._check_loss()
        nets = [self.net] if self.average is None else [self.net, self.average.module]
        finite = torch.stack([torch.isfinite(value).all() for net in nets for value in net.state_dict().values()])
        if not finite.all():
            raise self._diverged("a weight")

    def _check_loss(self) -> None:
        if self.under_way is not None and not torch.isfinite(self.under_way.loss_sum):
            raise self._diverged("the training loss")

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"{what} is not finite (epoch {self.epoch + 1}): lower optim.lr or give train.clip; "
            "the last finite weights are kept"
        )

    def slow_down(self, factor: float) -> None:
        """Multiply all further learning rates by `factor`."""
        self.rate *= factor

    def state_dict(self) -> dict[str, Any]:
        """Return everything an exact resume needs, valid after any optimizer step. Settings come from the recipe."""
        return {
            "epoch": self.epoch,
            "under_way": _saved(self.under_way) if self.under_way else None,
            "rate": self.rate,
            "pieces": self.pieces,
            "net": self.net.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "losses": self.easy.losses if self.easy is not None else None,
            "turns": self.easy.turns if self.easy is not None else None,
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.epoch, self.rate, self.pieces = state["epoch"], state["rate"], state["pieces"]
        self.under_way = _restored(state["under_way"], self.device) if state["under_way"] else None
        self.net.load_state_dict(state["net"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.easy is not None:
            self.easy.losses.copy_(state["losses"])
            self.easy.turns.copy_(state["turns"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the number of correct rows of logits [N, K]; mixed targets [N, K] count fractionally, labels [N] as 1."""
    predicted = logits.argmax(1)
    return (predicted == targets).sum() if targets.ndim == 1 else targets.gather(1, predicted[:, None]).sum()


def _saved(now: EpochProgress) -> dict[str, Any]:
    plain = {field.name: getattr(now, field.name) for field in fields(now)}
    return {**plain, "began": time.perf_counter() - now.began}


def _restored(saved: dict[str, Any], device: torch.device) -> EpochProgress:
    moved = {name: saved[name].to(device, copy=True) for name in ("order", "loss_sum", "hits")}
    return EpochProgress(**moved, seen=saved["seen"], began=time.perf_counter() - saved["began"])


def _resized(images: Tensor, resize: tuple[tuple[float, int], ...], progress: float) -> Tensor:
    """Resize pixels [N, C, H, W] to the side that `resize` gives for this progress; float32 if the side changes.

    Bilinear and antialiased like `interpolate`, but as two matrix products, which are five times as fast on a CPU.
    """
    sides = [side for start, side in resize if start <= progress]
    if not sides or sides[-1] == images.shape[-1]:
        return images
    down, across = (_interpolation(size, sides[-1], images.device) for size in images.shape[-2:])
    with torch.autocast(images.device.type, enabled=False):  # may be called under autocast
        return down @ (images.float() @ across.mT)


def _interpolation(size: int, side: int, device: torch.device) -> Tensor:
    """Return the weight of each of `size` input pixels in each of `side` output pixels: float32 [side, size].

    Each row sums to 1.
    """
    each = torch.eye(size, device=device)[None, None]
    return F.interpolate(each, size=(side, size), mode="bilinear", antialias=True)[0, 0]
