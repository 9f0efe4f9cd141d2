"""Format numbers, durations and protocols for reports. Missing and non-finite values are shown as a dash."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from resfit.record import RunRecord

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_GAP = "\N{NO-BREAK SPACE}"

_DATA_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "digits": "Digits", "folder": "Folder"}
_VIEWS = {
    "flip": "over two views: the image and its mirror image",
    "flip+shift": "over six views: the image and two copies shifted by a pixel, each with its mirror image",
}


def percent(fraction: float | None, digits: int = 2) -> str:
    """Format 0.94123 as "94.12 %"."""
    text = bare_percent(fraction, digits)
    return text if text == DASH else f"{text}{_GAP}%"


def plus_minus(mean: float, std: float | None) -> str:
    """Format mean and standard deviation, 0.9418 and 0.0013, as "94.18 ± 0.13"; without a deviation as "94.18"."""
    return bare_percent(mean) + ("" if std is None else f" ± {bare_percent(std)}")


def bare_percent(fraction: float | None, digits: int = 2) -> str:
    """Format 0.94123 as "94.12", for columns whose header names the unit."""
    return f"{100 * fraction:.{digits}f}" if fraction is not None and math.isfinite(fraction) else DASH


def confidence(fraction: float) -> str:
    """Format a confidence as a percentage, never as 100 %."""
    return f">{_GAP}99.99{_GAP}%" if fraction >= 0.99995 else percent(fraction)


def interval(bounds: tuple[float, float] | None) -> str:
    """Format an accuracy's interval as "93.98 to 94.22", within 0 and 100: a t-interval may reach beyond."""
    return DASH if bounds is None else f"{bare_percent(max(bounds[0], 0.0))} to {bare_percent(min(bounds[1], 1.0))}"


def points(difference: float | None) -> str:
    """Format a difference of fractions as signed percentage points: "+0.52"."""
    if difference is None or not math.isfinite(difference):
        return DASH
    text = f"{100 * difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def count(value: float | None) -> str:
    """Format 1972792 as "1,972,792"."""
    return f"{value:,.0f}" if value is not None and math.isfinite(value) else DASH


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with a fixed number of decimals."""
    return f"{value:.{digits}f}".replace("-", MINUS) if value is not None and math.isfinite(value) else DASH


def scaled(value: float | None, digits: int | None = 1) -> str:
    """Format a large count with a unit prefix: 123400000 as "123.4 M"; all digits if `digits` is None."""
    if value is None or not math.isfinite(value):
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            short = f"{value / size:g}" if digits is None else f"{value / size:.{digits}f}".removesuffix(".0")
            return short + _GAP + unit
    return f"{value:g}"


def megabytes(size: float) -> str:
    """Format bytes as MB (10^6 bytes), for columns whose header names the unit."""
    return f"{size / 1e6:.3f}"


def rate(per_second: float | None) -> str:
    """Format images per second: without decimals from ten on."""
    if per_second is None or not math.isfinite(per_second):
        return DASH
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"


def duration(seconds: float | None) -> str:
    """Format 1450 as "24 min 10 s": the two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}{_GAP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{_GAP}min{_GAP}{whole % 60:02}{_GAP}s"
    return f"{whole // 3600}{_GAP}h{_GAP}{whole % 3600 // 60:02}{_GAP}min"


def p_value(p: float | None) -> str:
    """Format a p-value with three decimals; below 0.001 as "<0.001"."""
    if p is None or not math.isfinite(p):
        return DASH
    return "<" + _GAP + "0.001" if p < 0.001 else f"{p:.3f}"


def data_name(record: RunRecord) -> str:
    """Return the data set's usual name."""
    name = str(record.data.get("name") or "unnamed data")
    return _DATA_NAMES.get(name, name)


def processor(record: RunRecord) -> str:
    """Return the name of the GPU that trained, or else of the CPU, without trademark signs and clock rates."""
    name = record.env.get("gpu") or record.env.get("cpu") or record.device
    return re.sub(r"\((R|TM)\)|\bCPU\b|@.*$|\s+(?=\s)", "", str(name)).strip() or record.device


def device(record: RunRecord) -> str:
    """Return device, precision and threads as a short text: "CPU, bf16, 16 threads"."""
    threads = record.env.get("threads")
    parts = [{"cuda": "GPU", "cpu": "CPU"}.get(record.device, record.device), record.precision]
    if record.device == "cpu" and threads:
        parts.append(thread_count(threads))
    return ", ".join(parts)


def thread_count(threads: int) -> str:
    """Format 1 as "1 thread"."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def peeking(record: RunRecord) -> str:
    """Return what it means that a run chose its weights on the test set."""
    scored = record.protocol.get("test_scored")
    times = f", which was used {scored:,} times" if isinstance(scored, int) and scored > 1 else ""
    return (
        f"The weights were chosen on the test set itself{times}. The accuracy is therefore biased upwards, and "
        "comparable only with others chosen in the same way."
    )


def protocol(record: RunRecord) -> list[str]:
    """Return sentences on how the result was measured."""
    measured = [*_split(record), *_given(record), _selection(record), *_scored(record), *_tta(record)]
    return [*measured, *_deviations(record), *(f"Event: {event}." for event in record.events)]


def _split(record: RunRecord) -> Iterator[str]:
    train, val, test = (record.data.get(f"n_{part}") for part in ("train", "val", "test"))
    if train and val:
        yield f"Trained on {train:,} images; {val:,} others were set aside for validation."
    elif train:
        whole = (record.config.get("data") or {}).get("fraction", 1) == 1
        yield f"Trained on {'all ' if whole else ''}{train:,} training images, with no validation split."
    if test:
        yield f"Tested on {test:,} images."


def _given(record: RunRecord) -> Iterator[str]:
    """Yield the trained networks that the run started from or learned from."""
    if record.init:
        yield f"Initialized from a trained network, {record.init}."
    for teacher in record.teachers:
        yield f"Distilled from a trained network, in addition to the labels: {teacher}."


def _selection(record: RunRecord) -> str:
    best = record.protocol.get("best_epoch")
    averaged = _averaged(record, best or record.epochs)
    weights = "averaged weights" if averaged else "weights"
    of = f"epoch {best}, the epoch" if best else "the epoch"
    if record.peeked:
        return f"Evaluated the {weights} of {of} with the best test accuracy."
    if record.protocol.get("selection") == "best-val":
        return f"Evaluated the {weights} of {of} with the best validation accuracy."
    return f"Evaluated the final {weights}, after {record.epochs:,} {'epoch' if record.epochs == 1 else 'epochs'}."


def _averaged(record: RunRecord, epoch: int) -> bool:
    """Return whether the weights after this epoch are an average: SWA begins late, and a run may stop before."""
    average: Any = record.config.get("average") or {}
    kind = average.get("name") if isinstance(average, Mapping) else None
    return kind == "ema" or (kind == "swa" and epoch >= average.get("start", 0.75) * record.config["train"]["epochs"])


def _scored(record: RunRecord) -> Iterator[str]:
    scored = record.protocol.get("test_scored")
    if scored == 1:
        yield "The test set was used once, at the end."
    elif scored:
        yield f"The test set was used {scored:,} times."


def _tta(record: RunRecord) -> Iterator[str]:
    if record.test.accuracy_tta is None:
        yield "No test-time augmentation."
    else:
        how = _VIEWS.get(str(record.protocol.get("tta_views")), "over several views of the image")
        share = record.protocol.get("tta_share", 1.0)
        if share < 1.0:
            how += f", for the {percent(share, 0)} of images with the lowest confidence"
        yield f"Test-time augmentation (TTA) averages the logits {how}. Loss, classes and calibration are without it."


def _deviations(record: RunRecord) -> Iterator[str]:
    for text in record.protocol.get("deviations") or ():
        scaled = text.removeprefix("scaled: ")
        begin = "Scaled from the recipe" if scaled != text else "Deviates from the published setting"
        yield f"{begin}: {scaled}{'' if scaled.endswith('.') else '.'}"


def duplicates(value: object) -> str:
    """Format the number of duplicate images, in any form in which a record stores it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {duplicates(item)}" for key, item in value.items()).replace("_", " ") or "none"
    if isinstance(value, int | float):
        return count(value) if value else "none"
    if isinstance(value, list | tuple):
        return count(len(value)) if value else "none"
    return str(value)


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return labelled values as text, without missing ones."""
    return [(key.replace("_", " "), _fact(value)) for key, value in values.items() if value not in (None, "", [], ())]


def _fact(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def recipe_text(config: Mapping[str, Any]) -> list[str]:
    """Return a recipe as YAML: one text for its plain fields, one per section; unset fields are omitted."""
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = [{key: value} for key, value in config.items() if isinstance(value, Mapping)]
    return ["\n".join(lines) for lines in (list(_block(part)) for part in [plain, *sections]) if lines]


def _block(value: Mapping[str, Any], indent: str = "", width: int = 56) -> Iterator[str]:
    for key, item in value.items():
        if item is None:
            continue
        line = f"{indent}{key}: {_flow(item)}"
        if isinstance(item, Mapping) and item and (not indent or len(line) > width):
            yield f"{indent}{key}:"
            yield from _block(item, indent + "  ")
        elif isinstance(item, list | tuple) and len(line) > width:
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {_flow(entry)}" for entry in item)
        else:
            yield line


def plain_value(value: object, digits: int | None = None) -> str:
    """Format a recipe's value on one line, as YAML; floats with `digits` significant digits, if given."""
    return f"{value:.{digits}g}" if digits and isinstance(value, float) else _flow(value)


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z][\w %().+-]*", value) and not _reserved(value) else json.dumps(value)
    return json.dumps(value)


def _reserved(text: str) -> bool:
    return text.lower() in {"true", "false", "yes", "no", "on", "off", "null", "y", "n"} or text != text.strip()
