"""RunRecord: a run in numbers, as it is written to record.json; and what several of them say together."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resfit.errors import BadInput
from resfit.fields import Plain, from_json, json_file, read_json, to_plain, unwritten
from resfit.files import sha256, write_atomic

EXPORTS = "export.json"


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain data without what is only said of it: its description and deviations."""
    return {name: value for name, value in config.items() if name not in ("description", "deviations")}


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: precision, recall and F1 as fractions, support in images."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """One bin of the reliability diagram: mean confidence, accuracy as a fraction, images in it."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Loss and calibration error of the same logits divided by a temperature, which was fitted on other images."""

    temperature: float
    loss: float
    ece: float


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A labelled set's scores. Accuracies are fractions; confusion[i][j] counts images of class i taken for class j."""

    accuracy: float
    accuracy_tta: float | None = None
    loss: float
    ece: float
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ConfidenceBin, ...]
    calibrated: Calibrated | None = unwritten(None)


@dataclass(frozen=True, kw_only=True)
class EpochPoint:
    """One epoch of the curve: `images` trained on, the main group's `lr` in its last step, `seconds` spent training."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    lr: float
    seconds: float
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One test image and its prediction; `image` is a PNG in base64."""

    image: str
    label: str
    prediction: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One line of the layer table; `shape` is the output's [channels, height, width]."""

    name: str
    kind: str
    shape: tuple[int, int, int]
    params: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median seconds of a forward pass of `batch` images on so many threads, over `passes`."""

    batch: int
    threads: int
    seconds: float
    passes: int


@dataclass(frozen=True, kw_only=True)
class PrunedNetwork:
    """A network at one step of its pruning: plain test accuracy (a fraction), price and speed."""

    name: str
    accuracy: float
    params: int
    macs: int
    latency: tuple[Latency, ...]


@dataclass(frozen=True, kw_only=True)
class ParentRun:
    """The run that a pruned network comes from, and the SHA-256 of its model.safetensors."""

    recipe: str
    seed: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How a network was pruned: its steps in order, and the channels of each part before and after."""

    parent: ParentRun
    criterion: str
    networks: tuple[PrunedNetwork, ...]
    widths: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class CorruptionScore:
    """One kind of corruption: its group, and the accuracy at severities 1 to 5, fractions."""

    kind: str
    group: str
    accuracy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Accuracy on corrupted test images, as in robustness.json: `set` names the corruptions and their version.

    `clean` is the accuracy without corruption, `mean` that over all kinds and severities.
    """

    set: str
    seed: int
    images: int
    clean: float
    mean: float
    kinds: tuple[CorruptionScore, ...]


@dataclass(frozen=True, kw_only=True)
class HumanAgreement:
    """The network beside people who labelled the same test images, as in human.json.

    `agreement` is the share of images whose most likely class is also the people's most frequent one, `human_accuracy`
    the share on which that is the label. `cross_entropy` is the network's against the people's distribution and
    `human_entropy` that distribution's own, the least that is possible: means over images, in nats.
    """

    images: int
    agreement: float
    human_accuracy: float
    cross_entropy: float
    human_entropy: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """An export held against its network: largest difference of logits, share of equal predictions."""

    batch_size: int
    images: int
    largest_difference: float
    equal: float


@dataclass(frozen=True, kw_only=True)
class CallTimes:
    """Times of single calls on one thread, in milliseconds."""

    runtime: str
    batch_size: int
    calls: int
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """An export in numbers. "Before" is the network that it came from; accuracies are fractions of the test images.

    `smallest_equal` and `largest_allowed` (of logits, None: not judged) are what the agreement was held to;
    `model_sha256` is that of the network's file.
    """

    resfit: str
    file: str
    format: str
    input: str | None
    runtime: str
    bytes: int
    bytes_before: int
    norms_folded: int
    data: str
    agreement: tuple[Agreement, ...]
    smallest_equal: float
    largest_allowed: float | None
    accuracy_before: float
    accuracy_after: float
    latency: tuple[CallTimes, ...]
    env: dict[str, Any]
    model_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class GivenModel:
    """A trained network that a run was given: its file as it was named, what of it was taken, and what to know of it.

    `sha256` is the file's; `recipe` and `data` (digest) are from the record beside it, None where there is none.
    """

    path: str
    sha256: str
    params: int
    recipe: str | None = None
    data: str | None = None
    taken: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.taken}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, kw_only=True)
class RunRecord(Plain):
    """Everything that a run leaves in numbers.

    `data`: name, digest, n_train, n_val, n_test, classes, mean, std, duplicates. `protocol`: selection, tta,
    test_scored, peeking. `env`: python, torch, cpu, cpu_features, gpu, threads, commit, command. `seconds_to_result`
    runs from data in memory to the last test score, compile warm-up apart, and `seconds_saving` of it went into the
    checkpoints (None: not measured); `images_per_second` is over the training steps. `robustness` and `human` come from
    files of their own beside record.json, where they were measured. `init` gave the first weights, `teachers` were
    learned from. `temperature` is what logits are divided by for calibrated probabilities, fitted on the validation
    split. `exports` are those that export.json beside the record lists. `events` are one-line remarks on what befell
    the run: changed fields, rollbacks, lack of memory.
    """

    resfit: str
    recipe: str
    description: str = ""
    config: dict[str, Any]
    spec: dict[str, Any]
    params: int
    macs: int
    budget: int
    layers: tuple[LayerRow, ...]
    seed: int
    epochs: int
    device: str
    precision: str
    env: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    seconds_to_result: float
    seconds_saving: float | None = unwritten(None)
    images_per_second: float
    val: Metrics | None = None
    test: Metrics
    temperature: float | None = None
    curve: tuple[EpochPoint, ...]
    init: GivenModel | None = unwritten(None)
    teachers: tuple[GivenModel, ...] = unwritten(())
    augmented: str = ""
    samples: tuple[Sample, ...] = ()
    pruning: Pruning | None = None
    events: tuple[str, ...] = ()
    robustness: Robustness | None = unwritten(None)
    human: HumanAgreement | None = unwritten(None)
    exports: tuple[ExportRecord, ...] = ()

    @property
    def accuracy(self) -> float:
        """The headline: test accuracy with test-time augmentation where the protocol has it, a fraction."""
        return self.test.accuracy if self.test.accuracy_tta is None else self.test.accuracy_tta

    @property
    def peeked(self) -> bool:
        """Whether the scored weights were chosen on the test set, so that its accuracy reads too high."""
        return bool(self.protocol.get("peeking")) or self.protocol.get("selection") == "best-test"

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for runs with the same settings, images, first weights and teachers, which may be averaged.

        Only seed and machine differ then. The recipe's description and deviations don't count.
        """
        config = json.dumps(settings(self.config), sort_keys=True, default=str)
        weights = self.init and self.init.sha256, tuple(teacher.sha256 for teacher in self.teachers)
        return self.recipe, config, self.data.get("digest"), weights


def read_record(path: str | Path) -> RunRecord:
    """The record at `path`: a record.json, or the run folder that holds one. A digest in it has to agree."""
    file = json_file(path, "record.json", "finished run")
    plain = read_json(file, "record")
    if isinstance(plain, dict) and plain.pop("digest", None) not in (None, _digest(plain)):
        raise BadInput(f"damaged record ({file}): its checksum is wrong")
    for name in ("robustness", "human"):
        if (beside := file.with_name(f"{name}.json")).exists():
            plain[name] = read_json(beside, "record")
    try:
        record = RunRecord.from_dict(plain)
    except BadInput as error:
        raise BadInput(f"damaged record ({file}): {error}") from None
    exports = _own_exports(file.parent) if file.name == "record.json" else ()
    return replace(record, exports=exports) if exports else record


def _own_exports(folder: Path) -> tuple[ExportRecord, ...]:
    """Those in a run folder that came from its own model."""
    exports, model = read_exports(folder), folder / "model.safetensors"
    own = sha256(model) if exports and model.exists() else None
    return tuple(export for export in exports if export.model_sha256 in (None, own) or own is None)


def read_exports(folder: Path) -> tuple[ExportRecord, ...]:
    """What export.json in `folder` lists; nothing where there is none."""
    file = folder / EXPORTS
    return from_json(tuple[ExportRecord, ...], file, "record") if file.exists() else ()


def record_text(record: RunRecord) -> str:
    """The content of a record.json: the record and a digest of it."""
    plain = json.loads(json.dumps(record.to_dict()))
    return json.dumps({**plain, "digest": _digest(plain)}, indent=1)


def _digest(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def find_records(paths: Sequence[str | Path]) -> list[RunRecord]:
    """The records at `paths`, in order: of files, run folders, folders that hold some, or of files SEED.json."""
    found: list[RunRecord] = []
    for path in map(Path, paths):
        inner = sorted(path.glob("**/record.json"), key=_seed_order) if path.is_dir() else []
        inner = inner or sorted(path.glob("[0-9]*.json"), key=lambda file: file.stem.zfill(9))
        found += [read_record(file) for file in inner] or [read_record(path)]
    return found


def _seed_order(path: Path) -> tuple[str, int, str]:
    seed = path.parent.name
    return str(path.parent.parent), int(seed) if seed.isdecimal() else -1, seed


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Several values of one quantity: n, mean, sample standard deviation, 95 % t-interval of the mean.

    The deviation and the interval are None for a single value.
    """

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    values: tuple[float, ...]


def summarize(values: Sequence[float]) -> Summary:
    """Mean, deviation and Student-t interval of at least one value; raises BadInput where there is none."""
    if not values:
        raise BadInput("no values (values): give at least one")
    n, mean = len(values), statistics.mean(values)
    if n == 1:
        return Summary(n=1, mean=mean, std=None, interval=None, values=tuple(values))
    std = statistics.stdev(values)
    half = _t_quantile(n - 1) * std / math.sqrt(n)
    return Summary(n=n, mean=mean, std=std, interval=(mean - half, mean + half), values=tuple(values))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean of b minus mean of a, its 95 % interval and two-sided p-value (Welch 1947); None where either n is 1."""

    a: Summary
    b: Summary
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None


def compare(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Compare two sets of runs by Welch's t-test, which takes no equal deviations for granted.

    Interval and p-value are None where there is no spread to judge by: a side of one run, or equal runs on both.
    """
    sum_a, sum_b = summarize(a), summarize(b)
    difference = sum_b.mean - sum_a.mean
    if sum_a.std is None or sum_b.std is None:
        return Comparison(a=sum_a, b=sum_b, difference=difference, interval=None, p_value=None)
    var_a, var_b = sum_a.std**2 / sum_a.n, sum_b.std**2 / sum_b.n
    error = math.sqrt(var_a + var_b)
    if error == 0.0:  # equal runs on either side say nothing of how far others would lie apart
        p_value = 1.0 if difference == 0.0 else None
        return Comparison(a=sum_a, b=sum_b, difference=difference, interval=None, p_value=p_value)
    freedom = error**4 / (var_a**2 / (sum_a.n - 1) + var_b**2 / (sum_b.n - 1))
    half = _t_quantile(freedom) * error
    from scipy.stats import t as student  # half a second that only comparisons pay

    return Comparison(
        a=sum_a,
        b=sum_b,
        difference=difference,
        interval=(difference - half, difference + half),
        p_value=float(2 * student.sf(abs(difference) / error, freedom)),
    )


def _t_quantile(freedom: float) -> float:
    from scipy.stats import t as student

    return float(student.ppf(0.975, freedom))


def group_runs(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Records by recipe; where one name stands for different recipes they are told apart by a number.

    So are runs on other images, or from the weights of other networks.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        name, n = record.recipe, 1
        while name in groups and groups[name][0].identity != record.identity:
            n += 1
            name = f"{record.recipe} ({n})"
        groups.setdefault(name, []).append(record)
    return groups


def runs_alike(folder: Path, record: RunRecord) -> list[RunRecord]:
    """The finished runs in a recipe's folder that differ from `record` in nothing but their seed, by it."""
    files = [file for file in folder.glob("*/record.json") if file.parent.name.isdecimal()]
    found = [read_record(file) for file in sorted(files, key=lambda file: int(file.parent.name))]
    return [other for other in found if other.identity == record.identity]


def write_summary(records: Sequence[RunRecord], folder: Path) -> None:
    """summary.json of several runs of one recipe: n, mean, deviation, interval and raw values, with and without TTA."""
    plain = summarize([record.test.accuracy for record in records])
    headline = summarize([record.accuracy for record in records])
    content = {
        "recipe": records[0].recipe,
        "seeds": [record.seed for record in records],
        "accuracy": to_plain(plain),
        "accuracy_tta": to_plain(headline) if records[0].test.accuracy_tta is not None else None,
        "seconds_to_result": to_plain(summarize([record.seconds_to_result for record in records])),
        "images_per_second": to_plain(summarize([record.images_per_second for record in records])),
    }
    write_atomic(folder / "summary.json", json.dumps(content, indent=1))
