"""Recipe: a network spec and all settings of its training, complete and frozen."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resfit.counts import parse_count
from resfit.errors import BadField, BadInput, named
from resfit.fields import Config, omitted_at_default, override
from resfit.shipped import read_named, shipped_names
from resfit.spec import NetSpec

DEFAULT_BUDGET = 5_000_000
_FOLDER = "recipes"


def _rising(steps: tuple[tuple[float, int], ...]) -> bool:
    """Return whether (fraction of training, value) pairs are in order, with fractions from 0 to below 1."""
    starts = [start for start, _ in steps]
    return starts == sorted(starts) and all(0 <= start < 1 for start in starts)


_SEEDS = range(2**63)  # valid seeds of torch's generators


def _check(field: str, value: object, good: object, allowed: str) -> None:
    if not good:
        raise BadField(f"{field} is {value!r}", field, f"give {allowed}")


_FEW_STEPS = 500  # on 600 photographs 150 reached 57 %, 500 64 %, 1,000 67 % (results/LOG.md)
SHORTEST_PERIOD = 0.01  # minimum `schedule.period`, in epochs

# Number of classes of the named data sets, and the numbers of channels that they are available in.
NAMED_SETS = {"digits": (10, (1, 3)), "cifar10": (10, (3,)), "cifar100": (100, (3,)), "svhn": (10, (3,))}


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The data set, and which of its images are used for training.

    Attributes:
        name: The data set. `digits`: 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, 360 of them
            for testing. `cifar10`, `cifar100`, `svhn`: downloaded where they are not found. `folder`: your own images,
            in the folder that `--data-dir` or RESFIT_DATA_DIR names; unless it has `train/` and `test/`, a fifth of
            each class is set apart for testing.
        val: Number of training images to keep for validation, or their share where it is below 1; taken from each class
            in proportion. 0: none, all are trained on. An image folder with a `val/` of its own uses that instead.
        split_seed: Seed of the split into training and validation images, and of what `fraction` keeps. Runs with
            different seeds still have the same split.
        fraction: Share of the remaining training images to train on, above 0, at most 1; taken from each class in
            proportion. Less than 1 saves time when trying things out.
    """

    name: Literal["digits", "cifar10", "cifar100", "svhn", "folder"] = "cifar10"
    val: int | float = 5000
    split_seed: int = 0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("fraction", self.fraction, 0 < self.fraction <= 1, "a fraction above 0, at most 1")
        _check(
            "val", self.val, self.val >= 0 and (self.val < 1 or float(self.val).is_integer()), "a count or a fraction"
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Config):
    """The augmentation of training images, drawn at random each time an image is used.

    The operations are applied in the order of the fields. Each is off at 0 or `none`.

    Attributes:
        policy: A random policy. `trivial`: TrivialAugment, one operation at a random strength (Müller & Hutter 2021).
            `rand`: RandAugment, two operations at level 9 of 30 (Cubuk et al. 2020). `autoaugment`: the policy that
            AutoAugment found for CIFAR-10 (Cubuk et al. 2019). All three take torchvision's strengths.
        crop: Pixels of padding on each side, from which a window of the image's size is cut at random.
        crop_mode: What the padding is made of. `zero`: black. `reflect`: the image mirrored at its edges.
        flip: `random`: mirror left to right with probability 1/2. `alternating`: mirror each image in every other
            epoch; a coin decides with which it begins (Jordan 2024, airbench).
        rotate: Largest angle in degrees, to either side; black fills the corners.
        translate: Largest shift along each side, as a fraction of it; by whole pixels, black fills the rest.
        brightness: The brightness is multiplied by a random factor from 1 - value to 1 + value.
        contrast: The contrast is multiplied by a random factor from 1 - value to 1 + value.
        saturation: The saturation is multiplied by a random factor from 1 - value to 1 + value. Grey images stay as
            they are.
        blur: Largest sigma of a Gaussian blur, in pixels; the smallest is 0.
        cutout: Side in pixels of a square at a random place that is filled with the mean colour of the training images
            (DeVries & Taylor 2017). It may reach beyond the edge.
        mixup: Alpha of mixup: two images and their labels are blended, with a weight drawn from Beta(alpha, alpha) for
            each batch (Zhang et al. 2018).
        cutmix: Alpha of CutMix: a box of one image is put into another, and labels are weighted by area; the area is
            drawn from Beta(alpha, alpha) for each batch (Yun et al. 2019). With `mixup` also on, each batch takes one
            of the two, with equal probability.
        ricap: Alpha of RICAP: patches of four images meet at a point whose coordinates are drawn from Beta(alpha,
            alpha) for each batch, and labels are weighted by area (Takahashi et al. 2018). Not together with `mixup` or
            `cutmix`.
    """

    policy: Literal["none", "trivial", "rand", "autoaugment"] = "none"
    crop: int = 0
    crop_mode: Literal["zero", "reflect"] = "zero"
    flip: Literal["none", "random", "alternating"] = "none"
    rotate: float = 0.0
    translate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    blur: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    ricap: float = omitted_at_default(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("rotate", self.rotate, 0 <= self.rotate <= 180, "degrees from 0 to 180")
        _check("translate", self.translate, 0 <= self.translate <= 1, "a fraction from 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        for name in ("crop", "cutout", "blur", "mixup", "cutmix", "ricap"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1000, "a number from 0 to below 1000")
        alone = not (self.ricap and (self.mixup or self.cutmix))
        _check("ricap", self.ricap, alone, "0, or leave mixup and cutmix out")

    @property
    def mixes(self) -> bool:
        """Whether images and their targets are mixed within a batch."""
        return bool(self.mixup or self.cutmix or self.ricap)


@dataclass(frozen=True, kw_only=True)
class InitConfig(Config):
    """How the weights are initialized.

    Attributes:
        filters: The filters of convolutions. `he`: normally distributed, with a variance from the fan-out (He et al.
            2015). `identity`: as many filters as there are input channels pass one of them on (dirac), and the others
            keep torch's own initialization.
        zero_last_norm: Whether each residual begins at zero (Goyal et al. 2017), by the gain of its last norm
            (`spec.norm.gain`), or in preact blocks by its last convolution.
    """

    filters: Literal["he", "identity"] = "he"
    zero_last_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class SamConfig(Config):
    """Sharpness-aware minimization: each step uses the gradient at the nearby weights with the highest loss.

    A step takes about twice the time. All batches of a step (`train.accumulate`) share one perturbation, and
    `train.clip` clips the gradient that is used.

    Attributes:
        rho: How far away these weights are, above 0. Usual: 0.05, or 0.5 where `adaptive`.
        adaptive: Measure the distance in units of each weight's size (Kwon et al. 2021) instead of in the weights' own
            space (Foret et al. 2021).
    """

    rho: float = 0.05
    adaptive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("rho", self.rho, 0 < self.rho < float("inf"), "a number above 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """The optimizer and its peak learning rates.

    Attributes:
        name: `sgd`, `adam`, `adamw`, `adadelta`, or `muon`. Muon orthogonalizes the update of convolution filters
            (Jordan et al. 2024) and leaves all other parameters to SGD with Nesterov momentum.
        lr: Peak learning rate.
        momentum: Momentum of SGD, or of Muon for the filters.
        nesterov: Whether that momentum is Nesterov's; it has to be above 0 then.
        weight_decay: Weight decay; `adamw` decouples it from the gradient. A group of parameters with a learning rate
            of its own decays as fast per step as lr x weight_decay says. The filters that Muon updates are kept at a
            fixed norm instead, which suits convolutions with a norm behind them; in preact blocks a branch's last
            convolution has none.
        decay_norm_and_bias: Whether norms and biases decay too.
        bias_lr: Peak learning rate of norms and biases. `null`: `lr`.
        head_lr: Peak learning rate of the classifier's weight. `null`: `lr`.
        sgd_momentum: Nesterov momentum of the SGD beside Muon; 0: none.
        betas: For `adam` and `adamw`: decay per step of the averages of the gradient and of its square.
        rho: For `adadelta`: decay per step of its averages.
        eps: For `adam`, `adamw` and `adadelta`: added to the denominator. `null`: 1e-8, and 1e-6 for `adadelta`.
        sam: Sharpness-aware minimization, with any of the optimizers. `null`: off.
    """

    name: Literal["sgd", "adam", "adamw", "adadelta", "muon"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norm_and_bias: bool = True
    bias_lr: float | None = None
    head_lr: float | None = None
    sgd_momentum: float = 0.85
    betas: tuple[float, float] = (0.9, 0.999)
    rho: float = 0.9
    eps: float | None = None
    sam: SamConfig | None = omitted_at_default(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "bias_lr", "head_lr", "eps"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 < value < float("inf"), "a number above 0")
        for name in ("momentum", "sgd_momentum", "rho"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "a number from 0 to below 1")
        _check("betas", self.betas, all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "0 or a number above it")
        _check("nesterov", self.nesterov, not self.nesterov or self.momentum > 0, "false, or a momentum above 0")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """The learning rate schedule, as a factor of the peak rate. Times are in epochs and may be fractional.

    Attributes:
        name: What follows the warm-up. `constant`: the peak. `step`: x `gamma` after every `period`. `multistep`: x
            `gamma` at each of the `milestones`. `cosine`: half a cosine down to `final`. `restarts`: cosines one after
            the other, each from the peak (Loshchilov & Hutter 2017). `triangular`: straight down to `final`.
            `onecycle`: as `cosine`, after a warm-up that is half a cosine too (Smith 2018).
        warmup: Epochs in which the rate climbs from `start` to the peak, in a straight line except for `onecycle`. 0:
            none.
        start: Where the warm-up begins, as a fraction of the peak.
        final: Where `cosine`, `restarts`, `triangular` and `onecycle` end, as a fraction of the peak.
        period: Length in epochs, counted from the end of the warm-up: between two steps (`step`), of the first cosine
            (`restarts`), or of the only cosine (`cosine`, `onecycle`), after which the rate stays at `final`; 0.01 or
            more. `null`: what is left of the training after the warm-up; `step` and `restarts` need a number.
        growth: For `restarts`: each cosine takes this many times as long as the one before it, from 1 to 100.
        milestones: For `multistep`: the epochs after which the rate falls, counted from the beginning of the training.
        gamma: For `step` and `multistep`: what the rate is multiplied by, above 0, at most 1.
    """

    name: Literal["constant", "step", "multistep", "cosine", "restarts", "triangular", "onecycle"] = "cosine"
    warmup: float = 0.0
    start: float = 0.0
    final: float = 0.0
    period: float | None = None
    growth: float = 1.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("warmup", self.warmup, 0 <= self.warmup < float("inf"), "0 or a number of epochs")
        for name in ("start", "final"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a fraction of the peak")
        _check(
            "period",
            self.period,
            self.period is None or SHORTEST_PERIOD <= self.period < float("inf"),
            "a number of epochs, 0.01 or more",
        )
        _check("period", self.period, self.name not in ("step", "restarts") or self.period, "a number of epochs")
        _check("growth", self.growth, 1 <= self.growth <= 100, "a number from 1 to 100")
        _check("gamma", self.gamma, 0 < self.gamma <= 1, "a number above 0, at most 1")
        epochs = all(0 <= milestone < float("inf") for milestone in self.milestones)
        _check("milestones", self.milestones, epochs, "numbers of epochs, 0 or above")
        _check("milestones", self.milestones, self.name != "multistep" or self.milestones, "at least one epoch")


@dataclass(frozen=True, kw_only=True)
class AverageConfig(Config):
    """Weight averaging; the averaged weights are evaluated and saved instead of the last ones.

    Attributes:
        name: `none`: the last weights. `ema`: an exponential moving average. `swa`: the mean of the weights at several
            times (Izmailov et al. 2018). Before SWA's mean is evaluated, one pass over the training images estimates
            the statistics of its batch norms (`evaluate.every` saves such passes); it wants a schedule that does not
            end at zero (`schedule.final`).
        decay: For `ema`: what the average keeps of itself at each optimizer step, from 0 to below 1.
        start: For `swa`: the fraction of training from which weights are taken in.
        every: For `swa`: take them in at the end of each `epoch`, or after each optimizer `step`.
    """

    name: Literal["none", "ema", "swa"] = "none"
    decay: float = 0.999
    start: float = omitted_at_default(0.75)
    every: Literal["epoch", "step"] = omitted_at_default("epoch")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("decay", self.decay, 0 <= self.decay < 1, "a number from 0 to below 1")
        _check("start", self.start, 0 <= self.start < 1, "a fraction from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """Distillation: learn from trained networks, the teachers, in addition to the labels (Hinton et al. 2015).

    The teachers get the same augmented and mixed images as the network.

    Attributes:
        teacher: A run folder or a model.safetensors, or a list of them, whose mean probabilities are learned from. They
            have to know the same classes and come from the same training data.
        weight: Weight of the teachers' part of the loss, above 0, at most 1; the labels' part has 1 - weight.
        temperature: T, which softens both probabilities. The teachers' part is T² x the KL divergence from them.
    """

    teacher: str | tuple[str, ...]
    weight: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("teacher", self.teacher, self.teachers and all(self.teachers), "a run folder or a model.safetensors")
        _check("weight", self.weight, 0 < self.weight <= 1, "a number above 0, at most 1")
        _check("temperature", self.temperature, 0 < self.temperature < 1000, "a number above 0")

    @property
    def teachers(self) -> tuple[str, ...]:
        """The paths of the teachers."""
        return (self.teacher,) if isinstance(self.teacher, str) else tuple(self.teacher)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """The training loop.

    Attributes:
        epochs: Number of epochs.
        batch_size: Images in a batch. With torchrun, those of all processes together.
        accumulate: Number of batches that share an optimizer step.
        drop_last: Whether to leave out an epoch's last batch where it is smaller than the others, unless it is the only
            one. Otherwise a single last image joins the batch before it.
        label_smoothing: Share of the label that is spread evenly over all classes, from 0 to below 1.
        clip: Largest norm of the gradient of a step; longer ones are scaled down to it. `null`: no limit.
        resize: Pairs of a fraction of training and a side in pixels: from that fraction on, training images are scaled
            to that side. Before the first pair, and without any, they have the network's `input.size`.
        freeze_stem_after: Number of epochs after which the bias of a whitening stem is trained no more. `null`: it
            always is.
        freeze: Pairs of a fraction of training and a number of stages: from the first epoch that begins after that
            fraction, the stem and this many of the first stages keep their weights, as early layers settle first (Brock
            et al. 2017, FreezeOut). Steps then compute less, and a network that was trained before (`--init`) changes
            less.
        patience: Stop after this many epochs without a better validation accuracy, or test accuracy where
            `evaluate.selection` is `best-test`. `null`: never.
        skip_easy: Share of the images to leave out of each epoch but the first: those with the lowest loss when they
            were last trained on. No image is left out twice in a row, so 0.5 at most.
        skip_easy_until: Fraction of training after which no image is left out.
        precision: `fp32`, `bf16` or `fp16` (mixed precision). `auto`: bf16 where the device has instructions for it or
            is clearly faster with it, else fp32.
        compile: Whether to compile the network with torch.compile. Not in several processes (torchrun).
        checkpoint_minutes: Minutes between two saves of the state; more after a slow save, so that saving takes at most
            a hundredth of the time.
        rollbacks: How often a run goes back to its last state when a loss or weight is not finite. 0: it ends with an
            error.
        rollback_factor: What all learning rates are multiplied by each time it goes back.
    """

    epochs: int = 200
    batch_size: int = 128
    accumulate: int = 1
    drop_last: bool = False
    label_smoothing: float = 0.0
    clip: float | None = None
    resize: tuple[tuple[float, int], ...] = ()
    freeze_stem_after: float | None = None
    freeze: tuple[tuple[float, int], ...] = omitted_at_default(())
    patience: int | None = None
    skip_easy: float = 0.0
    skip_easy_until: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    checkpoint_minutes: float = 5.0
    rollbacks: int = 0
    rollback_factor: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "accumulate"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "a whole number, at least 1")
        _check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "a number from 0 to below 1")
        _check("clip", self.clip, self.clip is None or 0 < self.clip < float("inf"), "a number above 0")
        _check("patience", self.patience, self.patience is None or self.patience >= 1, "a whole number, at least 1")
        _check("checkpoint_minutes", self.checkpoint_minutes, self.checkpoint_minutes > 0, "a number above 0")
        _check("rollbacks", self.rollbacks, 0 <= self.rollbacks <= 100, "a whole number from 0 to 100")
        _check("rollback_factor", self.rollback_factor, 0 < self.rollback_factor < 1, "a number between 0 and 1")
        limit = self.freeze_stem_after
        _check("freeze_stem_after", limit, limit is None or limit >= 0, "0 or a number of epochs")
        _check("skip_easy", self.skip_easy, 0 <= self.skip_easy <= 0.5, "a share from 0 to 0.5")
        _check("skip_easy_until", self.skip_easy_until, 0 <= self.skip_easy_until <= 1, "a fraction of training")
        sides = _rising(self.resize) and all(side >= 4 for _, side in self.resize)
        _check("resize", self.resize, sides, "increasing fractions below 1, each with a side of at least 4 pixels")
        stages = _rising(self.freeze) and all(count >= 0 for _, count in self.freeze)
        _check("freeze", self.freeze, stages, "increasing fractions below 1, each with a number of stages")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Which weights are selected, and how they are scored.

    Attributes:
        selection: `last`: the weights at the end, averaged ones where there are any. `best-val`: those of the epoch
            with the best validation accuracy. `best-test`: those of the epoch with the best test accuracy, so the test
            set is looked at in every epoch; the record and the report then say that the run peeked.
        tta: Test-time augmentation, scored beside the plain accuracy: the mean of the logits over several views of an
            image. `none`: the plain accuracy alone. `flip`: the image and its mirror image. `flip+shift`: these two
            with weight 1/4 each, and both shifted by a pixel up-left and down-right with weight 1/8 each (Jordan 2024,
            airbench).
        tta_share: Share of the test images, those that the network is least sure of, that are seen in several views.
            The others keep their plain score.
        every: Number of epochs from one validation to the next. The last epoch is always validated.
        batch_size: Images per batch in evaluation, a matter of speed and memory.
    """

    selection: Literal["last", "best-val", "best-test"] = "last"
    tta: Literal["none", "flip", "flip+shift"] = "flip+shift"
    tta_share: float = 1.0
    every: int = 1
    batch_size: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "batch_size"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "a whole number, at least 1")
        _check("tta_share", self.tta_share, 0 < self.tta_share <= 1, "a number above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """A complete description of a training. Together with a seed, it determines a run.

    Attributes:
        name: The recipe's name, which is also that of the folder of its runs.
        spec: The network.
        description: What it is, in a line.
        budget: Largest number of trainable parameters, in a file also as `5M` or `500k`. A network with more is refused
            before anything is built.
        data: The images.
        augment: The augmentation of training images.
        init: How the weights are initialized.
        optim: The optimizer.
        schedule: The learning rate over time.
        average: Averages of the weights.
        distill: Learning from trained networks. `null`: from the labels alone.
        train: The training loop.
        evaluate: Selection and scoring.
        deviations: In words, where the recipe departs from the published setting that it is named after.
    """

    name: str
    spec: NetSpec
    description: str = ""
    budget: int = DEFAULT_BUDGET
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    init: InitConfig = InitConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    average: AverageConfig = AverageConfig()
    distill: DistillConfig | None = omitted_at_default(None)
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    deviations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        safe = self.name.isprintable() and self.name[:1] not in ("", ".") and not set(self.name) & set('/\\:*?"<>|')
        _check("name", self.name, safe, "a name that can be used for a folder")
        _check("budget", self.budget, self.budget >= 1, "a number of trainable parameters")
        ends_on_norm = any(block.layout.norm_last for _, _, block in self.spec.plan())
        dead = self.init.zero_last_norm and not self.spec.norm.gain and ends_on_norm
        _check("init.zero_last_norm", True, not dead, "false, or norms with a gain (spec.norm.gain)")
        needs_val = self.data.name != "folder" and self.field_needing_val  # a folder may have its own validation images
        if needs_val and not self.data.val:
            raise BadField("there are no validation images to look at", needs_val, "give data.val")
        name, wanted, given = self.data.name, self.spec.num_classes, self.spec.input.channels
        classes, channels = NAMED_SETS.get(name, (wanted, (1, 3)))  # the classes of an image folder are counted
        if wanted != classes:
            raise BadField(f"{wanted} classes, but {name} has {classes}", "spec.num_classes", f"give {classes}")
        if given not in channels:
            advice = f"give {' or '.join(map(str, channels))}"
            raise BadField(f"{name} has no {given}-channel images", "spec.input.channels", advice)
        pads = self.augment.crop_mode == "reflect" and self.augment.crop >= self.spec.input.size
        _check("augment.crop", self.augment.crop, not pads, "less than the image's side, which is reflected")
        smallest = self.spec.sizes()[1][-1]
        for _, side in self.train.resize:
            small = _for_side(self.spec, side)
            alike = takes_side(self.spec, side)
            _check(
                "train.resize", side, alike, "sides that give the classifier the same number of features (spec.pool)"
            )
            smallest = min(smallest, small.sizes()[1][-1] if small else smallest)
        one_value = self.train.batch_size == smallest == 1
        _check("train.batch_size", 1, not one_value, "2 or more, as a norm of 1x1 maps averages over images")
        frozen = self.train.freeze_stem_after is None or self.spec.stem.kind == "whiten"
        _check("train.freeze_stem_after", self.train.freeze_stem_after, frozen, "null, or a stem of kind whiten")
        most, stages = max((count for _, count in self.train.freeze), default=0), len(self.spec.stages)
        _check("train.freeze", most, most <= stages, f"at most {stages}, the number of stages")

    @property
    def field_needing_val(self) -> str | None:
        """The field, if any, that needs validation images to decide something."""
        if self.evaluate.selection == "best-val":
            return "evaluate.selection"
        return "train.patience" if self.train.patience and self.evaluate.selection == "last" else None

    def remarks(self, images: int | None = None) -> list[str]:
        """Return a line about each setting that is valid but rarely intended, such as a schedule that is cut off.

        `images` is the number of training images, if it is known.
        """
        epochs, found = self.train.epochs, []
        late = [f"{m:g}" for m in self.schedule.milestones if self.schedule.name == "multistep" and m >= epochs]
        if late:
            found.append(
                f"milestones at {', '.join(late)} are never reached in {epochs} epochs: use --epochs, which "
                "scales them too"
            )
        if self.schedule.warmup >= epochs:
            found.append(
                f"a warm-up of {self.schedule.warmup:g} epochs never ends in {epochs} epochs: use --epochs, "
                "which scales it too"
            )
        if self.train.resize and self.train.resize[-1][1] != self.spec.input.size:
            side, size = self.train.resize[-1][1], self.spec.input.size
            found.append(f"training ends with images of {side}x{side} (train.resize), but {size}x{size} are scored")
        mixed = [name for name in ("mixup", "cutmix", "ricap") if getattr(self.augment, name)]
        if mixed and self.train.skip_easy:
            found.append(
                f"the loss of a mixed image says little about how easy it is ({mixed[0]}): set train.skip_easy to 0"
            )
        if images is not None and self.data.name == "folder":
            steps = epochs * math.ceil(images / (self.train.batch_size * self.train.accumulate))
            if steps < _FEW_STEPS:
                found.append(f"{images:,} images make {steps} steps in {epochs} epochs: more --epochs may help much")
        return found

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe file, or the recipe of that name; "name" defaults to the file's stem."""
        plain = plain_recipe(str(path))
        with named(path):
            return cls.from_dict(plain)

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> Recipe:
        """Build from plain data, in which the budget may be a text such as "5M"."""
        if isinstance(data, Mapping) and isinstance(data.get("budget"), str):
            data = {**data, "budget": parse_count(data["budget"], "budget")}
        return super().from_dict(data, where)

    def replace(self, overrides: Mapping[str, Any]) -> Recipe:
        """Return a recipe with the fields at dotted paths ("train.epochs") replaced, validated as a whole."""
        return _with_overrides(self.to_dict(), overrides)


def takes_side(spec: NetSpec, side: int) -> bool:
    """Return whether a network of `spec` can take images of `side` pixels with the same number of pooled features."""
    other = _for_side(spec, side)
    return other is not None and other.pooled_side == spec.pooled_side


def _for_side(spec: NetSpec, side: int) -> NetSpec | None:
    """Return `spec` for images of `side` pixels, or None if they are too small."""
    try:
        return replace(spec, input=replace(spec.input, size=side))
    except BadInput:
        return None


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with resfit."""
    return shipped_names(_FOLDER)


def get_recipe(target: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a name or YAML file, with the fields at dotted paths replaced."""
    return _with_overrides(plain_recipe(str(target)), overrides) if overrides else Recipe.from_yaml(target)


def _with_overrides(plain: dict[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    for dotted, value in overrides.items():
        plain = override(plain, dotted, value)
    return Recipe.from_dict(plain)


def plain_recipe(target: str) -> dict[str, Any]:
    """Return the content of a recipe, given by name or file, before validation."""
    data = read_named(target, _FOLDER, "recipe", "a name, a spec and what else is wanted")
    if "spec" not in data and {"stages", "stem"} & set(data):
        raise BadInput(f"this is a network, not a recipe ({target}): put it under spec:")
    return data


def checked_seed(seed: object) -> int:
    """Return the seed as an int; raises BadInput if torch's generators do not accept it."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number not in _SEEDS:
        raise BadInput(f"{seed!r} is not a seed (seed): give a whole number from 0 to below {_SEEDS.stop:,}")
    return number
