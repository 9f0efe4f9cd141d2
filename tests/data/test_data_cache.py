from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from resfit.data.cache import cached_array
from resfit.files import atomic_file

ARRAY = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)


def blocks() -> Iterator[np.ndarray]:
    yield ARRAY[:2]
    yield ARRAY[2:]


def never() -> Iterator[np.ndarray]:
    raise AssertionError("decoded anew")
    yield ARRAY


def test_an_array_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.npy"
    made = cached_array(path, ARRAY.shape, blocks())
    assert (made == ARRAY).all()
    assert (cached_array(path, ARRAY.shape, never()) == ARRAY).all()
    assert (np.load(path) == ARRAY).all(), "it is a usual .npy file"


def test_what_is_written_into_it_stays_in_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    cached_array(path, ARRAY.shape, blocks())[:] = 0
    assert (cached_array(path, ARRAY.shape, never()) == ARRAY).all()


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "header", "longer"])
def test_damage_is_noticed_and_repaired(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.npy"
    cached_array(path, ARRAY.shape, blocks())
    content = path.read_bytes()
    flipped = content[:200] + bytes([content[200] ^ 4]) + content[201:]
    damaged = {"empty": b"", "truncated": content[:-70], "flipped": flipped, "header": b"x" + content[1:]}
    path.write_bytes(damaged.get(damage, content + b"x"))
    with pytest.raises(AssertionError, match="decoded anew"):
        cached_array(path, ARRAY.shape, never())
    assert (cached_array(path, ARRAY.shape, blocks()) == ARRAY).all()
    assert (cached_array(path, ARRAY.shape, never()) == ARRAY).all()


def test_another_shape_is_not_mistaken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    cached_array(path, ARRAY.shape, blocks())
    assert cached_array(path, (2, 3, 4, 4), iter([ARRAY[:2]])).shape == (2, 3, 4, 4)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"old")]
