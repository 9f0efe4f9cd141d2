"""Tiny CIFARs, byte for byte of the official files' kind."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
import struct
import tarfile
from pathlib import Path

import pytest

from resfit.data import cifar
from resfit.recipe import DataConfig

CONFIG = DataConfig(name="cifar10", val=10)
N = 10  # images in a fake batch, one of each class


def text(value: bytes) -> bytes:
    """A Python 2 string in a pickle."""
    return b"T" + struct.pack("<i", len(value)) + value


def array(pixels: bytes, rows: int) -> bytes:
    """A uint8 [rows, 3072] as Python 2 and an old numpy pickled it, which no Python 3 does any more."""
    shape = b"(M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", 3072) + b"t"
    state = b"(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00t"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR" + state + b"b"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + text(pixels) + b"tb"


def pairs(**items: bytes) -> bytes:
    """A pickle, protocol 2, of a dict."""
    return b"\x80\x02}(" + b"".join(text(key.encode()) + value for key, value in items.items()) + b"u."


def labels(values: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def batch(key: str, classes: int, seed: int) -> bytes:
    pixels = random.Random(seed).randbytes(N * 3072)
    return pairs(**{key: labels([i % classes for i in range(N)]), "data": array(pixels, N)})


def contents(name: str) -> dict[str, bytes]:
    """The files of a tiny CIFAR."""
    files = cifar.FILES[name]
    names = b"](" + b"".join(text(b"class %d" % i) for i in range(5)) + b"e"
    made = {files.meta: pairs(**{files.names.decode(): names})}
    for seed, file in enumerate((*files.train, *files.test)):
        made[file] = batch(files.labels.decode(), 5, seed)
    return made


def expect(monkeypatch: pytest.MonkeyPatch, name: str, made: dict[str, bytes], archive: bytes = b"") -> None:
    """Have the MD5s of these files expected instead of the official ones."""
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in made.items()}
    files = dataclasses.replace(cifar.FILES[name], md5=md5, archive_md5=hashlib.md5(archive).hexdigest())
    monkeypatch.setitem(cifar.FILES, name, files)


def tar(folder: str, made: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file, content in made.items():
            member = tarfile.TarInfo(f"{folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member)
    return buffer.getvalue()


def write(folder: Path, made: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in made.items():
        (folder / file).write_bytes(content)
    return folder
