"""Too little memory is said before anything is loaded, with the figures."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from resfit import data
from resfit.data import folder, load_dataset
from resfit.errors import BadInput
from resfit.machine import free_bytes, require_room
from resfit.recipe import DataConfig


def test_room_is_asked_for_in_bytes() -> None:
    require_room("cifar10", 10**9, 10**9)
    require_room("cifar10", 10**15, None)
    with pytest.raises(BadInput, match=r"^not enough memory \(cifar10\): 2.50 GB are needed and 1.00 GB are free; use"):
        require_room("cifar10", 2_500_000_000, 10**9)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says")
def test_the_system_says_how_much_is_free() -> None:
    before = free_bytes()
    assert before is not None
    assert 2**20 < before < 2**50
    with mmap.mmap(-1, 2**30) as held:  # more than others give back meanwhile, and nothing that malloc has kept
        for place in range(0, len(held), mmap.PAGESIZE):
            held[place] = 1
        after = free_bytes()
        assert after is not None
        assert after < before - len(held) / 4


FORTY_LARGE_BUFFERS = """
import resource
import torch
from resfit.malloc import keep_pages
{first}
def buffer(): torch.ones(2**24)  # 64 MB
buffer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40): buffer()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_kept_pages_are_not_asked_for_again() -> None:
    def faults(first: str) -> int:
        program = FORTY_LARGE_BUFFERS.format(first=first)
        return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    # Without it each buffer costs 32 faults at the least (huge pages of 2 MB) and 16,384 at the most. What is left with
    # it, some hundred, is not the buffers'.
    assert faults("assert keep_pages()") < 40 * 32 / 2 < 40 * 32 <= faults("")


def test_a_set_that_is_too_large_is_refused_before_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RESFIT_DATA_DIR", raising=False)
    monkeypatch.setattr(data, "free_bytes", lambda: 10**9)
    cifar = DataConfig(name="cifar10")
    with pytest.raises(BadInput, match=r"^not enough memory \(cifar10\): 9.40 GB are needed and 1.00 GB are free"):
        load_dataset(cifar, size=224, data_dir=tmp_path, offline=True)
    with pytest.raises(BadInput) as other:  # at 32 pixels it would fit: the next thing that is missing is said
        load_dataset(cifar, size=32, data_dir=tmp_path, offline=True)
    assert "not enough memory" not in str(other.value)


def test_a_folder_that_is_larger_than_memory_is_read_from_the_disk_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for label in ("cat", "dog"):
        for n in range(5):
            path = tmp_path / label / f"{n}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (n, 0, 0)).save(path)
    monkeypatch.setattr(folder, "free_bytes", lambda: 1000)
    lines: list[str] = []
    loaded = load_dataset(DataConfig(name="folder", val=0), size=8, data_dir=tmp_path, progress=lines.append)
    assert lines[0].startswith("the images take 0.00 GB and 0.00 GB of memory are free")
    assert len(loaded.train) + len(loaded.test) == 10
