"""One short training on the real CIFAR-10: the main job, end to end, as people run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from resfit.record import read_record


@pytest.mark.slow
@pytest.mark.cifar10
def test_a_short_run_learns_cifar10(cifar10_dir: Path, tmp_path: Path) -> None:
    """One epoch on images of 16x16: far above the 10 % of chance, and the whole folder is there."""
    words = ["train", "cifar10-94", "--data-dir", str(cifar10_dir), "--offline", "--out", str(tmp_path)]
    words += ["--train.epochs", "1", "--train.resize", "[[0.0, 16], [0.8, 24]]", "--evaluate.tta", "none"]
    subprocess.run([sys.executable, "-m", "resfit", *words], check=True)
    record = read_record(tmp_path / "cifar10-94" / "0")
    assert record.test.accuracy > 0.5
    assert record.data["n_test"] == 10_000
    assert record.params == 1_971_352
    assert (tmp_path / "cifar10-94" / "0" / "report.html").stat().st_size > 20_000
