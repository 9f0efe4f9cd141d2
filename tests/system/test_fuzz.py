"""Files and words of any content: each is read, or refused in one line; nothing crashes, hangs or lands elsewhere.

A few inputs for each loader in the default suite, 100,000 in all with -m slow.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.places import ROOT
from helpers.strategies import mutations
from helpers.tiny_recipe import TINY
from resfit import cli
from resfit.checkpoint import load_state, save_state
from resfit.data.cache import cached_array
from resfit.data.decode import decode_all
from resfit.data.download import extract
from resfit.errors import ResfitError
from resfit.modelfile import load, save_model
from resfit.modelheader import ModelInfo
from resfit.net import build
from resfit.recipe import Recipe
from resfit.record import read_record
from resfit.spec import NetSpec
from resfit.target import find_target

RECORD = ROOT / "results" / "digits" / "0.json"
MILLISECONDS = 5000  # for one input; a hang is what takes longer
FEW, MANY = 25, 10_000  # inputs for each loader


@dataclass(frozen=True)
class Loader:
    """What is tried, and with what: `attempt` gets a drawn input and an empty folder."""

    inputs: Callable[[], st.SearchStrategy[Any]]
    attempt: Callable[[Any, Path], object]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A valid file with bytes changed, cut, doubled or put in at a few places."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from((0, 1, 1, 2, 4, 8, 64)))
        new = draw(st.binary(max_size=8) | st.sampled_from((b"\xff" * 8, b"\x00" * 8, b"\x80", content[:64])))
        content = content[:start] + new + content[start + length :]
        if draw(st.integers(0, 9)) == 0:
            content = content[: draw(st.integers(0, len(content)))]
    return content


def any_file(valid: bytes) -> st.SearchStrategy[bytes]:
    return damaged(valid) | st.binary(max_size=200)


def any_yaml(valid: object) -> st.SearchStrategy[bytes]:
    text = yaml.safe_dump(valid, allow_unicode=True).encode()
    plain = mutations(valid).map(lambda data: yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "replace"))
    return any_file(text) | plain | mutations(valid).map(lambda data: json.dumps(data).encode()) | alias_bombs()


@st.composite
def alias_bombs(draw: st.DrawFn) -> bytes:
    """Lists of aliases of lists of aliases; or a list that holds itself."""
    depth, width = draw(st.integers(1, 30)), draw(st.integers(1, 12))
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth))]
    lines.append(draw(st.sampled_from((f"stages: *a{depth - 1}", "spec: &s {stages: [*s]}", f"spec: *a{depth - 1}"))))
    return "\n".join(lines).encode()


def any_json(valid: object) -> st.SearchStrategy[bytes]:
    deep = st.sampled_from((b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b"1e999", b"NaN", b"null", b"\xff\xfe"))
    return mutations(valid).map(lambda data: json.dumps(data).encode()) | any_file(json.dumps(valid).encode()) | deep


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@cache
def plain_record() -> Any:
    return json.loads(RECORD.read_text())


def file_of(write: Callable[[Path], object]) -> bytes:
    """What `write` leaves at the path that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


@cache
def state_file() -> bytes:
    state = {"net": {"w": torch.arange(6.0)}, "epoch": 3, "curve": [{"loss": 0.5}], "best": None}
    return file_of(lambda path: save_state(path, state))


def sealed(content: bytes) -> bytes:
    """Damaged content behind the right checksum: what is left is torch's own care."""
    return hashlib.sha256(content).digest() + content


@cache
def model_file() -> bytes:
    spec, info = NetSpec.from_dict(TINY["spec"]), ModelInfo(classes=tuple("0123456789"), mean=(0.5,), std=(0.5,))
    return file_of(lambda path: save_model(path, build(spec), spec, info))


def models_of_other_specs() -> st.SearchStrategy[bytes]:
    """Whole files whose metadata is not what their tensors are."""

    def model(spec: object, info: object) -> bytes:
        metadata = {"format": "pt", "resfit.spec": json.dumps(spec), "resfit.info": json.dumps(info)}
        return bytes(safetensors.torch.save({"head.weight": torch.zeros(10, 16)}, metadata))

    huge = {**TINY["spec"], "stages": [{"blocks": 1000, "channels": 65_536, "kernel": 15}] * 4}
    info = {"classes": ["a"], "mean": [0.5], "std": [0.5]}
    return st.builds(model, mutations(TINY["spec"]) | st.just(huge), mutations(info))


@cache
def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((12, 9)).convert("RGB").save(buffer, format=kind)
    return buffer.getvalue()


@st.composite
def bombs(draw: st.DrawFn) -> bytes:
    """A PNG that says that it is as large as drawn."""
    content = bytearray(picture("PNG"))
    content[16:24] = struct.pack(">II", *(draw(st.sampled_from((1, 20_000, 2**31 - 1, 2**32 - 1))) for _ in range(2)))
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@cache
def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"12345"))
    return buffer.getvalue()


@st.composite
def hostile_archives(draw: st.DrawFn) -> bytes:
    """Archives of members with any names, of any type, that point anywhere."""
    buffer = io.BytesIO()
    parts = st.sampled_from(("..", ".", "data", "a", "", "/", "~", "\n", "é", "x" * 300, "/tmp", "C:"))
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for _ in range(draw(st.integers(0, 4))):
            member = tarfile.TarInfo("/".join(draw(st.lists(parts, min_size=1, max_size=4))))
            member.type = draw(
                st.sampled_from((tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"9"))
            )
            member.linkname = "/".join(draw(st.lists(parts, max_size=3)))
            member.mode = draw(st.sampled_from((0, 0o644, 0o7777)))
            tar.addfile(member)
    return buffer.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """Unpack into a folder of its own, and see that nothing else came to be."""
    place = folder / "inside"
    place.mkdir()
    path = written(place, "a.tar", content)
    try:
        found = extract(path, "data", hashlib.md5(content).hexdigest())
        assert found == place / "data"
    finally:
        assert {entry.name for entry in folder.iterdir()} == {"inside"}
        assert {entry.name for entry in place.iterdir()} <= {"a.tar", "data"}


CACHED = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


UNCLOSED = (
    b"\x93NUMPY\x01\x00v\x00" + b"'descr': '|u1', }".ljust(117) + b"\n"
)  # its header ends as one that never began


def cache_file() -> bytes:
    return file_of(lambda path: cached_array(path, CACHED.shape, iter([CACHED])))


def read_cache(content: bytes, folder: Path) -> None:
    """Whatever lies in the cache, the array is the right one."""
    array = cached_array(written(folder, "a.npy", content), CACHED.shape, iter([CACHED]))
    assert np.array_equal(array, CACHED)


def look(content: bytes, folder: Path) -> None:
    path = written(folder, "image.png", content)
    for block in decode_all([path], root=folder, size=8, channels=3):
        assert block.shape == (1, 3, 8, 8)


def speak(words: list[str], folder: Path) -> None:
    """The command line, with a recipe that is priced and a folder that is not there."""
    status = cli.main(["show", *words])
    assert status in (0, 2)


WORDS = st.lists(
    st.sampled_from(
        ("digits", "--budget", "5M", "--json", "--spec.stages", "--train.epochs", "&a [*a]", "{", "--", "-")
    )
    | st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12),
    max_size=5,
)

LOADERS = {
    "specs": Loader(lambda: any_yaml(TINY["spec"]), lambda x, at: NetSpec.from_yaml(written(at, "s.yaml", x))),
    "recipes": Loader(lambda: any_yaml(TINY), lambda x, at: Recipe.from_yaml(written(at, "r.yaml", x))),
    "records": Loader(lambda: any_json(plain_record()), lambda x, at: read_record(written(at, "record.json", x))),
    "checkpoints": Loader(lambda: any_file(state_file()), lambda x, at: load_state(written(at, "state.pt", x))),
    "sealed checkpoints": Loader(
        lambda: any_file(state_file()[32:]).map(sealed), lambda x, at: load_state(written(at, "state.pt", x))
    ),
    "models": Loader(
        lambda: any_file(model_file()) | models_of_other_specs(),
        lambda x, at: load(written(at, "model.safetensors", x)),
    ),
    "targets": Loader(
        lambda: any_file(model_file()) | models_of_other_specs(),
        lambda x, at: find_target(str(written(at, "model.safetensors", x))),
    ),
    "images": Loader(
        lambda: (
            st.one_of([any_file(picture(kind)) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")]) | bombs()
        ),
        look,
    ),
    "archives": Loader(
        lambda: hostile_archives() | any_file(archive("data/a", "data/b")) | st.just(archive("data/a", "../b")), unpack
    ),
    "caches": Loader(lambda: any_file(cache_file()) | st.just(UNCLOSED), read_cache),
    "words": Loader(lambda: WORDS, speak),
}


def fuzz(name: str, examples: int, parent: Path, *, same: bool) -> None:
    """Give a loader so many inputs: the `same` ones each time, or random ones."""
    loader, folders = LOADERS[name], iter(range(10 * examples))
    how = {"deadline": MILLISECONDS, "database": None, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=examples, derandomize=same, **how)
    @given(loader.inputs())
    def each_is_read_or_refused(content: Any) -> None:
        folder = parent / str(next(folders))
        folder.mkdir()
        try:
            loader.attempt(content, folder)
        except ResfitError as error:
            line = str(error)
            assert len(line.splitlines()) == 1
            assert len(line) < 2000
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    each_is_read_or_refused()


@pytest.mark.parametrize("name", LOADERS)
def test_any_content_is_read_or_refused_in_one_line(name, tmp_path, capsys):
    fuzz(name, FEW, tmp_path, same=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", LOADERS)
def test_a_hundred_thousand_inputs(name, tmp_path, capsys):
    fuzz(name, MANY, tmp_path, same=False)


def test_what_the_fuzzing_starts_from_is_read(tmp_path):
    """Otherwise everything would be refused at the door."""
    assert NetSpec.from_yaml(written(tmp_path, "s.yaml", yaml.safe_dump(TINY["spec"]).encode()))
    assert read_record(RECORD)
    assert load_state(written(tmp_path, "state.pt", sealed(state_file()[32:])))["epoch"] == 3
    assert load(written(tmp_path, "model.safetensors", model_file()))
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
        look(picture(kind), tmp_path)
    (tmp_path / "unpacked").mkdir()
    unpack(archive("data/a", "data/b"), tmp_path / "unpacked")
