"""Recipe: a spec and everything that its training needs, complete and frozen."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resfit.errors import BadField, BadInput
from resfit.fields import Config, override, unwritten
from resfit.shipped import read_named, shipped_names
from resfit.spec import NetSpec

DEFAULT_BUDGET = 5_000_000
_FOLDER = "recipes"


def _rising(steps: tuple[tuple[float, int], ...]) -> bool:
    """Whether what happens from a fraction of the training on is listed in its order."""
    starts = [start for start, _ in steps]
    return starts == sorted(starts) and all(0 <= start < 1 for start in starts)


_SEEDS = range(2**63)  # that torch's generators take


def _check(field: str, value: object, good: object, allowed: str) -> None:
    if not good:
        raise BadField(f"{field} is {value!r}", field, f"give {allowed}")


SHORTEST_PERIOD = 0.01  # of a schedule, in epochs

# Classes and channels of the data sets that have a name; the digits are grey or in three channels alike.
_KNOWN = {"digits": (10, None), "cifar10": (10, 3), "cifar100": (100, 3), "svhn": (10, 3)}


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The images. `val` is a count, or a fraction below 1, of the training images; 0 trains on all of them.

    `fraction` of the images that are left to train on is kept, stratified: less work, for trying things out.
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
    """What is drawn anew for each training image, in this order; zeros and `none` switch an operation off.

    policy, crop (pixels of padding), flip, rotate (degrees), translate (fraction of the side), brightness, contrast,
    saturation (factors drawn from 1 ± value), blur (largest sigma in pixels), cutout (side in pixels), and then mixup
    or cutmix (the alpha of their Beta distribution; with both on, each batch takes one of them), or ricap (likewise).
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
    ricap: float = unwritten(0.0)

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
    """How weights begin. he: He et al. 2015, fan out. identity: filters pass their input on (dirac).

    `zero_last_norm` begins each residual at zero (Goyal et al. 2017): the gain of its last norm, or in preact blocks
    its last convolution.
    """

    filters: Literal["he", "identity"] = "he"
    zero_last_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class SamConfig(Config):
    """Sharpness-aware minimization, at about twice the time a step.

    The step's gradient is taken at weights that are `rho` away, where the loss is highest: in the weights' own space
    (Foret et al. 2021; 0.05 is usual), or `adaptive`, in units of each weight's size (Kwon et al. 2021; 0.5 is usual).
    The batches of one step (train.accumulate) are perturbed together; train.clip bounds the gradient that is followed.
    """

    rho: float = 0.05
    adaptive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("rho", self.rho, 0 < self.rho < float("inf"), "a number above 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """The optimizer and its peak rates.

    `bias_lr` (norms, biases) and `head_lr` (the classifier's weight) replace `lr` for their group. A group with its own
    rate decays as fast per step as `lr x weight_decay` says. `decay_norm_and_bias: false` spares norms and biases.
    muon orthogonalizes the update of filters (Jordan et al. 2024) and leaves the rest to Nesterov SGD with
    `sgd_momentum`. `sam` goes with all of them.
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
    sam: SamConfig | None = unwritten(None)

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
    """The learning rate over time, as a factor of its peak; times are in epochs.

    constant; step (x `gamma` every `period`); multistep (x `gamma` at each milestone); cosine (to `final` at the end,
    or at `period` where that is given); restarts (cosines of `period`, each `growth` times as long as the last);
    triangular (straight down to `final` after the warm-up); onecycle (cosine up through the warm-up, cosine down to
    `final`: Smith 2018). `warmup` epochs climb straight from `start` ahead of all the others.
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
    """Averaged weights that replace the last ones at evaluation.

    ema: an exponential moving average with `decay` per step. swa: the mean of the weights at each epoch's end, or after
    each step (`every`), from the fraction `start` of training on (Izmailov et al. 2018). Before it is evaluated, one
    pass over the training images gives its batch norms their statistics; evaluate.every spares such passes. It wants a
    schedule that does not end at zero (schedule.final).
    """

    name: Literal["none", "ema", "swa"] = "none"
    decay: float = 0.999
    start: float = unwritten(0.75)
    every: Literal["epoch", "step"] = unwritten("epoch")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("decay", self.decay, 0 <= self.decay < 1, "a number from 0 to below 1")
        _check("start", self.start, 0 <= self.start < 1, "a fraction from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """What is learned from trained networks: run folders or model.safetensors of the same classes and training data.

    The loss is (1 - `weight`) x the labels' + `weight` x T² KL from the teachers' mean probabilities, both softened by
    the `temperature` T (Hinton et al. 2015). Teachers see the images that the student sees, augmented and mixed.
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
        """Where the teachers lie."""
        return (self.teacher,) if isinstance(self.teacher, str) else tuple(self.teacher)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """The loop.

    `accumulate` batches share an optimizer step; `clip` bounds the gradient's norm; `resize` lists (from this fraction
    of training on, this side in pixels); `freeze_stem_after` stops a whitening stem's bias at that epoch; `freeze`
    lists (from this fraction of training on, stem and so many stages keep their weights), as early layers settle first
    (Brock et al. 2017, FreezeOut): a step then computes less, and a network that was trained before is changed less;
    `patience` stops after so many epochs without a better validation accuracy; `drop_last` leaves an epoch's last
    partial batch out; `skip_easy` leaves this share of the images out of each epoch but the first, those with the
    lowest loss when they were last trained on and none twice in a row (so half of them at most), up to the fraction
    `skip_easy_until` of training. precision auto: bf16 where the device has instructions for it, else fp32.

    The state is saved every `checkpoint_minutes`. Where a loss or weight is not finite, the run goes back to the state
    up to `rollbacks` times, with learning rates times `rollback_factor` each time.
    """

    epochs: int = 200
    batch_size: int = 128
    accumulate: int = 1
    drop_last: bool = False
    label_smoothing: float = 0.0
    clip: float | None = None
    resize: tuple[tuple[float, int], ...] = ()
    freeze_stem_after: float | None = None
    freeze: tuple[tuple[float, int], ...] = unwritten(())
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
            _check(name, getattr(self, name), getattr(self, name) >= 1, "a whole number from 1 on")
        _check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "a number from 0 to below 1")
        _check("clip", self.clip, self.clip is None or 0 < self.clip < float("inf"), "a number above 0")
        _check("patience", self.patience, self.patience is None or self.patience >= 1, "a whole number from 1 on")
        _check("checkpoint_minutes", self.checkpoint_minutes, self.checkpoint_minutes > 0, "a number above 0")
        _check("rollbacks", self.rollbacks, 0 <= self.rollbacks <= 100, "a whole number from 0 to 100")
        _check("rollback_factor", self.rollback_factor, 0 < self.rollback_factor < 1, "a number between 0 and 1")
        limit = self.freeze_stem_after
        _check("freeze_stem_after", limit, limit is None or limit >= 0, "0 or a number of epochs")
        _check("skip_easy", self.skip_easy, 0 <= self.skip_easy < 1, "a share from 0 to below 1")
        _check("skip_easy_until", self.skip_easy_until, 0 <= self.skip_easy_until <= 1, "a fraction of training")
        sides = _rising(self.resize) and all(side >= 4 for _, side in self.resize)
        _check("resize", self.resize, sides, "rising fractions below 1, each with a side of at least 4 pixels")
        stages = _rising(self.freeze) and all(count >= 0 for _, count in self.freeze)
        _check("freeze", self.freeze, stages, "rising fractions below 1, each with a number of stages")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """How the result is chosen and scored.

    selection: which weights are scored; best-test looks at the test set every epoch, and the record says that it did.
    tta: test-time augmentation beside the plain accuracy, of the share `tta_share` of the images that the network is
    least sure of; the others keep their plain score. `every`: epochs between validations.
    """

    selection: Literal["last", "best-val", "best-test"] = "last"
    tta: Literal["none", "flip", "flip+shift"] = "flip+shift"
    tta_share: float = 1.0
    every: int = 1
    batch_size: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "batch_size"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "a whole number from 1 on")
        _check("tta_share", self.tta_share, 0 < self.tta_share <= 1, "a number above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """One complete description of a training: with a seed it determines a run.

    `deviations` says in words where it departs from the published setting that it is named after.
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
    distill: DistillConfig | None = unwritten(None)
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    deviations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        safe = self.name.isprintable() and self.name[:1] not in ("", ".") and not set(self.name) & set('/\\:*?"<>|')
        _check("name", self.name, safe, "a name that can be a folder's")
        _check("budget", self.budget, self.budget >= 1, "a number of trainable parameters")
        ends_on_norm = any(block.layout.norm_last for _, _, block in self.spec.plan())
        dead = self.init.zero_last_norm and not self.spec.norm.gain and ends_on_norm
        _check("init.zero_last_norm", True, not dead, "false, or norms with a gain (spec.norm.gain)")
        needs_val = self.data.name != "folder" and self.field_needing_val  # a folder may bring its own
        if needs_val and not self.data.val:
            raise BadField("there are no validation images to look at", needs_val, "give data.val")
        name, wanted, given = self.data.name, self.spec.num_classes, self.spec.input.channels
        classes, channels = _KNOWN.get(name, (None, None))
        if classes not in (None, wanted):
            raise BadField(f"{wanted} classes, but {name} has {classes}", "spec.num_classes", f"give {classes}")
        if channels not in (None, given):
            raise BadField(f"{name} has no {given}-channel images", "spec.input.channels", f"give {channels}")
        pads = self.augment.crop_mode == "reflect" and self.augment.crop >= self.spec.input.size
        _check("augment.crop", self.augment.crop, not pads, "less than the image's side, which is reflected")
        smallest = self.spec.sizes()[1][-1]
        for _, side in self.train.resize:
            small = _for_side(self.spec, side)
            alike = takes_side(self.spec, side)
            _check("train.resize", side, alike, "sides that leave the classifier as many features (spec.pool)")
            smallest = min(smallest, small.sizes()[1][-1] if small else smallest)
        one_value = self.train.batch_size == smallest == 1
        _check("train.batch_size", 1, not one_value, "2 or more, as a norm of 1x1 maps averages over images")
        frozen = self.train.freeze_stem_after is None or self.spec.stem.kind == "whiten"
        _check("train.freeze_stem_after", self.train.freeze_stem_after, frozen, "null, or a stem of kind whiten")
        most, stages = max((count for _, count in self.train.freeze), default=0), len(self.spec.stages)
        _check("train.freeze", most, most <= stages, f"at most the {stages} stages that there are")

    @property
    def field_needing_val(self) -> str | None:
        """The field, if any, that decides by validation images."""
        if self.evaluate.selection == "best-val":
            return "evaluate.selection"
        return "train.patience" if self.train.patience and self.evaluate.selection == "last" else None

    def remarks(self) -> list[str]:
        """What is allowed and seldom meant, in a line each: a schedule that is cut off, another size at the end."""
        epochs, found = self.train.epochs, []
        late = [f"{m:g}" for m in self.schedule.milestones if self.schedule.name == "multistep" and m >= epochs]
        if late:
            found.append(f"milestones at {', '.join(late)} of {epochs} epochs are never reached: --epochs scales both")
        if self.schedule.warmup >= epochs:
            found.append(f"a warm-up of {self.schedule.warmup:g} of {epochs} epochs never ends: --epochs scales both")
        if self.train.resize and self.train.resize[-1][1] != self.spec.input.size:
            side, size = self.train.resize[-1][1], self.spec.input.size
            found.append(f"training ends on images of {side}x{side} (train.resize), scored are {size}x{size}")
        mixed = [name for name in ("mixup", "cutmix", "ricap") if getattr(self.augment, name)]
        if mixed and self.train.skip_easy:
            found.append(f"a mixed image's loss says little of how easy its first part is ({mixed[0]}): skip_easy 0")
        return found

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe file; its name is the file's unless it says otherwise."""
        return cls.from_dict(plain_recipe(str(path)))

    def replace(self, overrides: Mapping[str, Any]) -> Recipe:
        """A recipe with the fields at dotted paths ("train.epochs") replaced, checked as a whole."""
        return _with_overrides(self.to_dict(), overrides)


def takes_side(spec: NetSpec, side: int) -> bool:
    """Whether a network of `spec` takes images of `side` pixels as well, with as many features for its classifier."""
    other = _for_side(spec, side)
    return other is not None and other.pooled_side == spec.pooled_side


def _for_side(spec: NetSpec, side: int) -> NetSpec | None:
    """`spec` for images of `side` pixels; None where they are too small."""
    try:
        return replace(spec, input=replace(spec.input, size=side))
    except BadInput:
        return None


def recipe_names() -> list[str]:
    """The named recipes that come with resfit."""
    return shipped_names(_FOLDER)


def get_recipe(target: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a name or of a YAML file, with fields at dotted paths replaced."""
    return _with_overrides(plain_recipe(str(target)), overrides or {})


def _with_overrides(plain: dict[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    for dotted, value in overrides.items():
        plain = override(plain, dotted, value)
    return Recipe.from_dict(plain)


def plain_recipe(target: str) -> dict[str, Any]:
    """The content of a recipe, by name or file, before it is checked."""
    data = read_named(target, _FOLDER, "recipe", "a name, a spec and what else is wanted")
    if "spec" not in data and {"stages", "stem"} & set(data):
        raise BadInput(f"a network, not a recipe ({target}): put it under spec:")
    return data


def checked_seed(seed: object) -> int:
    """A run's seed; raises BadInput for one that no generator takes."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number not in _SEEDS:
        raise BadInput(f"{seed!r} is no seed (seed): give a whole number, 0 or more and less than {_SEEDS.stop:,}")
    return number
