"""Made-up records of runs on CIFAR-10, with everything that a report shows."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import replace
from functools import cache

from PIL import Image

from resfit.record import ClassScore, ConfidenceBin, EpochPoint, LayerRow, Metrics, RunRecord, Sample

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@cache
def picture(width: int = 32, height: int = 32, tint: int = 0) -> str:
    image = Image.linear_gradient("L").resize((width, height))
    image = Image.merge("RGB", (image, image.rotate(90), image.point(lambda level: (level + tint) % 256)))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def matrix(classes: int, support: int, accuracy: float) -> tuple[tuple[int, ...], ...]:
    """Mistakes fall on the two neighbours, more for some classes than for others."""
    rows = []
    for i in range(classes):
        wrong = round(support * (1 - accuracy) * (0.5 + i % 5 / 4))
        row = [0] * classes
        row[(i + 1) % classes], row[(i + 2) % classes] = wrong - wrong // 3, wrong // 3
        row[i] = support - wrong
        rows.append(tuple(row))
    return tuple(rows)


def scores(names: tuple[str, ...], confusion: tuple[tuple[int, ...], ...]) -> tuple[ClassScore, ...]:
    taken = [sum(column) for column in zip(*confusion, strict=True)]
    return tuple(
        ClassScore(
            name=name,
            precision=confusion[i][i] / max(taken[i], 1),
            recall=confusion[i][i] / sum(confusion[i]),
            f1=2 * confusion[i][i] / (taken[i] + sum(confusion[i])),
            support=sum(confusion[i]),
        )
        for i, name in enumerate(names)
    )


def metrics(names: tuple[str, ...] = CIFAR10, *, accuracy: float = 0.9345, tta: float | None = 0.9412) -> Metrics:
    confusion = matrix(len(names), 10_000 // len(names), accuracy)
    levels = [(0.31, 0.30, 20), (0.45, 0.41, 90), (0.62, 0.55, 240), (0.78, 0.71, 450), (0.91, 0.86, 900)]
    return Metrics(
        accuracy=accuracy,
        accuracy_tta=tta,
        loss=0.2174,
        ece=0.0131,
        per_class=scores(names, confusion),
        confusion=confusion,
        reliability=tuple(
            ConfidenceBin(confidence=c, accuracy=a, count=n) for c, a, n in [*levels, (0.985, 0.981, 8300)]
        ),
    )


def curve(epochs: int, *, val: bool = True, test: bool = False, top: float = 0.94) -> tuple[EpochPoint, ...]:
    done = [(e, 1 - math.exp(-4 * e / epochs)) for e in range(1, epochs + 1)]
    return tuple(
        EpochPoint(
            epoch=e,
            train_loss=2.1 - 1.85 * part + 0.05 * math.sin(e),
            train_accuracy=0.25 + (top - 0.23) * part,
            val_loss=2.0 - 1.7 * part + 0.08 * math.sin(2 * e) if val else None,
            val_accuracy=0.28 + (top - 0.28) * part + 0.01 * math.sin(3 * e) * (1 - part) if val else None,
            test_accuracy=0.27 + (top - 0.28) * part if test else None,
            lr=0.05 * (1 + math.cos(math.pi * (e - 1) / epochs)),
            seconds=12.5,
        )
        for e, part in done
    )


LAYERS = (
    LayerRow(name="stem.conv", kind="conv 3x3", shape=(64, 32, 32), params=1728, macs=1769472, activation_bytes=262144),
    LayerRow(name="stem.norm", kind="norm", shape=(64, 32, 32), params=128, macs=0, activation_bytes=262144),
    LayerRow(
        name="stages.0.0.branch.conv1",
        kind="conv 3x3",
        shape=(64, 32, 32),
        params=36864,
        macs=37748736,
        activation_bytes=262144,
    ),
    LayerRow(
        name="stages.1.0.branch.conv1",
        kind="conv 3x3",
        shape=(256, 16, 16),
        params=147456,
        macs=37748736,
        activation_bytes=262144,
    ),
    LayerRow(name="head", kind="linear", shape=(10, 1, 1), params=2570, macs=2560, activation_bytes=40),
)

CONFIG = {
    "name": "seed003",
    "spec": {"stages": [{"blocks": 4, "channels": 64, "block": None}, {"blocks": 3, "channels": 256}], "se": None},
    "description": "Three stages, dropout ahead of the head",
    "budget": 5_000_000,
    "data": {"name": "cifar10", "val": 5000, "split_seed": 0},
    "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "betas": [0.9, 0.999], "eps": None},
    "average": {"name": "none", "decay": 0.999},
    "train": {"epochs": 200, "batch_size": 100},
}


def record(**changes: object) -> RunRecord:
    base = RunRecord(
        resfit="0.1.0",
        recipe="seed003",
        description="Three stages, dropout ahead of the head",
        config=CONFIG,
        spec=CONFIG["spec"],  # type: ignore[arg-type]
        params=1_972_792,
        macs=123_400_000,
        budget=5_000_000,
        layers=LAYERS,
        seed=0,
        epochs=40,
        device="cpu",
        precision="bf16",
        env={
            "python": "3.11.9",
            "torch": "2.10.0",
            "cpu": "AMD EPYC 9654 96-Core Processor",
            "gpu": None,
            "threads": 16,
            "cpu_features": ["avx2", "avx512_bf16"],
            "commit": "76adab5c1f00",
            "command": "resfit train seed003 --seed 0",
        },
        data={
            "name": "cifar10",
            "digest": "9f2b6c1d" * 8,
            "n_train": 45_000,
            "n_val": 5_000,
            "n_test": 10_000,
            "classes": list(CIFAR10),
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.247, 0.2435, 0.2616],
            "duplicates": {"train/val": 1, "train/test": 0, "val/test": 0},
            "notes": ["1 val image is also in train"],
        },
        protocol={
            "selection": "last",
            "tta": True,
            "tta_views": "flip+shift",
            "test_scored": 1,
            "peeking": False,
            "best_epoch": None,
            "deviations": [],
        },
        seconds_to_result=1450.2,
        images_per_second=2345.6,
        val=metrics(tta=None, accuracy=0.938),
        test=metrics(),
        curve=curve(40),
        augmented=picture(296, 197),
        samples=tuple(
            Sample(
                image=picture(tint=9 * i),
                label=CIFAR10[i % 10],
                prediction=CIFAR10[i % 10 if i < 8 else 3],
                confidence=0.99999 - 0.002 * i,
            )
            for i in range(12)
        ),
    )
    return replace(base, **changes)  # type: ignore[arg-type]
