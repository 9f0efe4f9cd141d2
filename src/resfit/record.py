"""RunRecord: the results of a run, as stored in record.json; and statistics over the records of several runs."""

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
from resfit.fields import Plain, from_json, json_file, omitted_at_default, read_json, to_plain
from resfit.files import sha256, write_atomic

EXPORTS = "export.json"


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's plain data without the descriptive fields: description and deviations."""
    return {name: value for name, value in config.items() if name not in ("description", "deviations")}


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """The scores of one class against the others, as fractions.

    Attributes:
        name: The class.
        precision: Of the images taken for the class, the share that are of it. 0 where none is taken for it.
        recall: Of the images of the class, the share that are taken for it.
        f1: Harmonic mean of precision and recall.
        support: Number of images of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """One bin of the reliability diagram: the images whose highest probability is in its range.

    Attributes:
        confidence: Mean of their highest probabilities.
        accuracy: Their accuracy, a fraction.
        count: Number of images.
    """

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Scores of the same logits divided by a temperature fitted on the validation images.

    Attributes:
        temperature: The temperature.
        loss: Mean cross-entropy, in nats.
        ece: Expected calibration error.
    """

    temperature: float
    loss: float
    ece: float


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The scores of the images of one split.

    Attributes:
        accuracy: Share of the images whose most likely class is the label, without test-time augmentation.
        accuracy_tta: The same with test-time augmentation. `null`: not scored with it.
        loss: Mean cross-entropy, in nats.
        ece: Expected calibration error: mean gap between confidence and accuracy over 15 bins of equal width, weighted
            by images (Guo et al. 2017).
        per_class: The scores of each class.
        confusion: A row for each class, a column for each class: confusion[i][j] images of class i were taken for class
            j.
        reliability: The bins of the reliability diagram that hold an image, by rising confidence.
        calibrated: Loss and calibration error after calibration. `null`: no validation images, and so no temperature.
    """

    accuracy: float
    accuracy_tta: float | None = None
    loss: float
    ece: float
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ConfidenceBin, ...]
    calibrated: Calibrated | None = omitted_at_default(None)


@dataclass(frozen=True, kw_only=True)
class EpochPoint:
    """One epoch of the training curve, and one line of metrics.jsonl.

    Attributes:
        epoch: The epoch, counted from 1.
        train_loss: Mean training loss, with all that the recipe adds to it (label smoothing, mixed labels, teachers).
        train_accuracy: Accuracy on the augmented images, as they were trained on; a fraction. Of a mixed image, its
            predicted class's part counts as right.
        val_loss: Mean cross-entropy on the validation images. `null`: not validated in this epoch.
        val_accuracy: Accuracy on the validation images, a fraction. `null`: not validated in this epoch.
        test_accuracy: Accuracy on the test images. `null` unless `evaluate.selection` is `best-test`.
        lr: Learning rate of the main group of parameters in the epoch's last step.
        seconds: Seconds spent training, validation apart.
        images: Number of images trained on. `null`: not noted.
    """

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
    """One test image and the network's prediction for it.

    Attributes:
        image: The image, a PNG in base64.
        label: Its class.
        prediction: The class that the network finds most likely.
        confidence: That class's probability.
    """

    image: str
    label: str
    prediction: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One line of the layer table.

    Attributes:
        name: The layer's name, that of its module in the network.
        kind: What it is, such as `conv 3x3`, `norm` or `linear`.
        shape: Its output: channels, height and width.
        params: Its trainable parameters.
        macs: Its multiply-accumulate operations for one image.
        activation_bytes: Bytes of its output for one image, in fp32.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    params: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The time of a forward pass in fp32.

    Attributes:
        batch: Number of images in the pass.
        threads: Number of CPU threads.
        seconds: Median of the passes' times.
        passes: Number of passes timed.
    """

    batch: int
    threads: int
    seconds: float
    passes: int


@dataclass(frozen=True, kw_only=True)
class PrunedNetwork:
    """The network after one pruning step.

    Attributes:
        name: The step: `before`, `pruned` or `fine-tuned`.
        accuracy: Its test accuracy without test-time augmentation, a fraction.
        params: Its trainable parameters.
        macs: Its multiply-accumulate operations for one image.
        latency: Its forward pass, timed for several batch sizes and numbers of threads.
    """

    name: str
    accuracy: float
    params: int
    macs: int
    latency: tuple[Latency, ...]


@dataclass(frozen=True, kw_only=True)
class ParentRun:
    """The run that a pruned network comes from.

    Attributes:
        recipe: Its recipe's name.
        seed: Its seed.
        sha256: SHA-256 of its model.safetensors.
    """

    recipe: str
    seed: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How a network was pruned.

    Attributes:
        parent: The run that it comes from.
        criterion: What the channels were judged by, in words.
        networks: The network before, pruned and fine-tuned, in this order.
        widths: Each part of the network with its number of channels before and after.
    """

    parent: ParentRun
    criterion: str
    networks: tuple[PrunedNetwork, ...]
    widths: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class CorruptionScore:
    """Accuracy under one kind of corruption.

    Attributes:
        kind: The corruption.
        group: Its group, such as noise or blur.
        accuracy: The accuracy at severities 1 to 5, fractions.
    """

    kind: str
    group: str
    accuracy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Accuracy on corrupted test images, the content of robustness.json.

    Attributes:
        set: Name and version of the set of corruptions, which are resfit's own; other sets cannot be compared.
        seed: Seed of the corruptions.
        images: Number of test images.
        clean: Accuracy without corruption, a fraction.
        mean: Mean accuracy over all kinds and severities, a fraction.
        kinds: The accuracy under each kind.
    """

    set: str
    seed: int
    images: int
    clean: float
    mean: float
    kinds: tuple[CorruptionScore, ...]


@dataclass(frozen=True, kw_only=True)
class HumanAgreement:
    """Agreement of the network with human labels of the same test images, the content of human.json.

    Attributes:
        images: Number of test images.
        agreement: Share of the images whose most likely class is also the one that most people chose.
        human_accuracy: Share of the images for which the class that most people chose is the label.
        cross_entropy: Cross-entropy of the network's probabilities against the people's distribution; mean over images,
            in nats.
        human_entropy: Entropy of the people's distribution, the least cross-entropy possible; mean over images, in
            nats.
    """

    images: int
    agreement: float
    human_accuracy: float
    cross_entropy: float
    human_entropy: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Comparison of an export with its network, in batches of one size.

    Attributes:
        batch_size: Images in a batch.
        images: Number of images.
        largest_difference: Largest difference of two logits.
        equal: Share of images for which both predict the same class.
    """

    batch_size: int
    images: int
    largest_difference: float
    equal: float


@dataclass(frozen=True, kw_only=True)
class CallTimes:
    """The times of single calls on one CPU thread.

    Attributes:
        runtime: What is called, the network or the export, and by what it is run.
        batch_size: Images in a call.
        calls: Number of calls timed.
        median_ms: Median time of a call, in milliseconds.
        p99_ms: 99th percentile of the times, in milliseconds.
    """

    runtime: str
    batch_size: int
    calls: int
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """One export, an entry of export.json. "Before" is the network that was exported.

    Attributes:
        resfit: Version of resfit.
        file: The file's name.
        format: Its format, as `resfit export --format` names it.
        input: What the graph takes: `uint8` from 0 to 255, or `float` from 0 to 1. `null`: the file holds weights
            alone.
        runtime: What ran it when it was checked.
        bytes: Its size.
        bytes_before: Size of the model file.
        norms_folded: Number of batch norms folded into convolutions.
        data: Name of the data set that it was checked on.
        agreement: How it agrees with the network, at each batch size.
        smallest_equal: The smallest `equal` that was accepted.
        largest_allowed: The largest `largest_difference` that was accepted. `null`: any.
        accuracy_before: Test accuracy of the network, a fraction.
        accuracy_after: Test accuracy of the export, a fraction.
        latency: Times of calls to both, at each batch size.
        env: What it was checked on, as the record's `env`.
        model_sha256: SHA-256 of the model file. `null`: not noted.
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
    """A trained network that the run was given.

    Attributes:
        path: Its place, as it was given.
        sha256: SHA-256 of its model file.
        params: Its trainable parameters.
        recipe: Its recipe, from the record beside it. `null`: there is no record.
        data: Digest of the data that it was trained on, from the record beside it. `null`: there is no record.
        taken: What was taken of it.
        note: What to know of it, as that it was trained on images that this run validates on.
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
    """All results of a run. Accuracies are fractions from 0 to 1.

    Attributes:
        resfit: Version of resfit.
        recipe: The recipe's name.
        description: The recipe's description.
        config: The recipe as it was run, with every override.
        spec: Its network.
        params: Trainable parameters.
        macs: Multiply-accumulate operations of convolutions and linear layers for one image.
        budget: The limit on trainable parameters.
        layers: The layer table.
        seed: The run's seed.
        epochs: Number of epochs trained, fewer than the recipe's where the run stopped early.
        device: `cpu` or `cuda`.
        precision: The precision it was computed in: `fp32`, `bf16` or `fp16`.
        env: What it ran on: `python`, `torch`, `platform`, `cpu`, `cpu_features`, `cpu_count`, `gpu`, `threads`,
            `commit` of the source (with -dirty where the working tree had other changes), `command`, `kernels` of
            resfit that were used, `world_size` (number of processes).
        data: `name`, `digest` of images and splits, `test_digest` of an image folder's test files, `n_train`, `n_val`,
            `n_test`, `classes`, `mean` and `std` of each channel on the scale from 0 to 1, `duplicates` (images of the
            second split that also occur in the first), `notes`.
        protocol: `selection`; `tta` (whether), `tta_views` and `tta_share`; `test_scored`, how often the test set was
            scored; `peeking`, whether the test set decided which weights are kept; `best_epoch`, the epoch of these,
            `null` for the last; `deviations` of the recipe.
        seconds_to_result: Seconds from data in memory to the last test score, initialization and test-time augmentation
            included, compilation apart. Of a resumed run all parts count.
        seconds_saving: How many of these went into saving the state. `null`: not measured.
        images_per_second: Images trained on per second of training.
        val: Scores on the validation images. `null`: there are none.
        test: Scores on the test images, of the weights that were selected.
        temperature: What logits are divided by for calibrated probabilities, fitted on the validation images. `null`:
            there are none.
        curve: The training curve, a point for each epoch.
        init: The network whose weights the run began with (`--init`). `null`: it began anew.
        teachers: The networks that it learned from.
        augmented: Training images, a PNG in base64: each as it is in the first column, and beside it as training may
            see it.
        samples: The test images that the network is surest of: up to 8 that it gets right, then up to 8 that it gets
            wrong.
        pruning: How the network was pruned. `null`: it was not.
        events: One-line remarks on what happened to the run: changed fields, rollbacks, lack of memory.
        robustness: Accuracy on corrupted images, from robustness.json. `null`: not measured.
        human: Agreement with people, from human.json. `null`: not measured.
        exports: Exports of the network, from export.json.
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
    seconds_saving: float | None = omitted_at_default(None)
    images_per_second: float
    val: Metrics | None = None
    test: Metrics
    temperature: float | None = None
    curve: tuple[EpochPoint, ...]
    init: GivenModel | None = omitted_at_default(None)
    teachers: tuple[GivenModel, ...] = omitted_at_default(())
    augmented: str = ""
    samples: tuple[Sample, ...] = ()
    pruning: Pruning | None = None
    events: tuple[str, ...] = ()
    robustness: Robustness | None = omitted_at_default(None)
    human: HumanAgreement | None = omitted_at_default(None)
    exports: tuple[ExportRecord, ...] = ()

    @property
    def accuracy(self) -> float:
        """The headline test accuracy, with test-time augmentation if the protocol has it, as a fraction."""
        return self.test.accuracy if self.test.accuracy_tta is None else self.test.accuracy_tta

    @property
    def peeked(self) -> bool:
        """Whether the scored weights were selected on the test set, so that the test accuracy is too optimistic."""
        return bool(self.protocol.get("peeking")) or self.protocol.get("selection") == "best-test"

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for runs with the same settings, images, initial weights and teachers, which may be averaged.

        They differ only in seed and machine. The recipe's description and deviations are ignored.
        """
        config = json.dumps(settings(self.config), sort_keys=True, default=str)
        weights = self.init and self.init.sha256, tuple(teacher.sha256 for teacher in self.teachers)
        return self.recipe, config, self.data.get("digest"), weights


def is_finished(folder: Path) -> bool:
    """Return whether the run in `folder` is finished: its record is written last."""
    return (folder / "record.json").exists()


def finished_seeds(folder: Path) -> dict[int, Path]:
    """Return the folders of the finished runs in a recipe's folder, by seed, ascending."""
    found = {int(path.name): path for path in folder.glob("*") if path.name.isdecimal() and is_finished(path)}
    return dict(sorted(found.items()))


def read_record(path: str | Path) -> RunRecord:
    """Read the record at `path`: a record.json, or the run folder that contains one; its digest must match."""
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
    """Return the exports in a run folder that were made from the folder's own model."""
    exports, model = read_exports(folder), folder / "model.safetensors"
    own = sha256(model) if exports and model.exists() else None
    return tuple(export for export in exports if export.model_sha256 in (None, own) or own is None)


def read_exports(folder: Path) -> tuple[ExportRecord, ...]:
    """Return the entries of export.json in `folder`; empty if there is no such file."""
    file = folder / EXPORTS
    return from_json(tuple[ExportRecord, ...], file, "record") if file.exists() else ()


def record_text(record: RunRecord) -> str:
    """Return the text of a record.json: the record and its digest."""
    plain = json.loads(json.dumps(record.to_dict()))
    return json.dumps({**plain, "digest": _digest(plain)}, indent=1)


def _digest(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def find_records(paths: Sequence[str | Path]) -> list[RunRecord]:
    """Read the records at `paths`, in order: record files, run folders, folders of runs or of SEED.json files."""
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
    """Statistics of several values of one quantity: n, mean, sample standard deviation, 95 % t-interval of the mean.

    The deviation and the interval are None for a single value.
    """

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    values: tuple[float, ...]


def summarize(values: Sequence[float]) -> Summary:
    """Compute mean, deviation and Student-t interval of one or more values; raises BadInput if there are none."""
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
    """Mean of b minus mean of a, its 95 % interval and two-sided p-value (Welch 1947), None as in `compare`."""

    a: Summary
    b: Summary
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None


def compare(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Compare two sets of runs by Welch's t-test, which does not assume equal variances.

    Interval and p-value are None if there is no spread to judge by: one side has a single run, or the runs of each side
    are equal. In the latter case the p-value is 1 if the means are equal too.
    """
    sum_a, sum_b = summarize(a), summarize(b)
    difference = sum_b.mean - sum_a.mean
    if sum_a.std is None or sum_b.std is None:
        return Comparison(a=sum_a, b=sum_b, difference=difference, interval=None, p_value=None)
    var_a, var_b = sum_a.std**2 / sum_a.n, sum_b.std**2 / sum_b.n
    error = math.sqrt(var_a + var_b)
    if error == 0.0:  # equal runs on each side tell nothing about the spread of further runs
        p_value = 1.0 if difference == 0.0 else None
        return Comparison(a=sum_a, b=sum_b, difference=difference, interval=None, p_value=p_value)
    freedom = error**4 / (var_a**2 / (sum_a.n - 1) + var_b**2 / (sum_b.n - 1))
    half = _t_quantile(freedom) * error
    from scipy.stats import t as student  # imported here because it takes half a second

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
    """Group records by recipe name; runs of one name that differ in `identity` get numbered groups.

    That is, runs with other settings, other images, or other initial weights or teachers.
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
    """Return the finished runs in a recipe's folder that differ from `record` only in the seed, sorted by seed."""
    found = [read_record(run) for run in finished_seeds(folder).values()]
    return [other for other in found if other.identity == record.identity]


def write_summary(records: Sequence[RunRecord], folder: Path) -> None:
    """Write summary.json for the runs of one recipe: n, mean, deviation, interval and values, with and without TTA."""
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
