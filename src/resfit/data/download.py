"""Download official files, verify their MD5, and extract archives safely."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
from pathlib import Path, PurePosixPath

from resfit.data.bar import bar
from resfit.errors import BadInput
from resfit.files import atomic_file, cache_dir

_BLOCK_BYTES = 2**20
_TIMEOUT_SECONDS = 30


def download(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, which is created only if complete and of the given MD5; else raises BadInput."""
    by_hand = f"try again, or get it elsewhere and put it into {path.parent}"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, atomic_file(path) as file:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            found = hashlib.md5(usedforsecurity=False)
            with bar(path.name, total) as advance:
                while block := response.read(_BLOCK_BYTES):
                    file.write(block)
                    found.update(block)
                    advance(len(block))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"the connection dropped after {file.tell():,} of {total:,} bytes")
            if found.hexdigest() != md5:
                raise BadInput(f"the download is not the official file, its MD5 is wrong ({url}): {by_hand}")
    except BadInput:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BadInput(f"cannot download {path.name} ({url}: {_one_line(error)}): {by_hand}") from None


def read_checked(path: Path, md5: str) -> bytes:
    """Return the content of an official file; raises BadInput if it is missing or its MD5 is wrong."""
    if not path.is_file():
        raise BadInput(f"a file is missing ({path}): put it back, or give a folder that has all files (--data-dir)")
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise BadInput(f"damaged file, its MD5 is wrong ({path}): delete it and download it again")
    return content


def extract(archive: Path, folder: str, md5: str) -> Path:
    """Extract `folder` from an official tar archive, next to it, or into the cache if its folder is read-only.

    The folder appears only when complete; one that another process extracted meanwhile stays. Raises BadInput for a
    wrong MD5, and for members other than files and folders or outside the folder; FileNotFoundError if there is no
    archive.
    """
    with archive.open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() != md5:
            raise BadInput(f"damaged archive, its MD5 is wrong ({archive}): delete it and download it again")
        file.seek(0)
        place = archive.parent if os.access(archive.parent, os.W_OK) else cache_dir()
        place.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=place, prefix=f".{folder}."))
        try:
            with tarfile.open(fileobj=file) as tar:
                _refuse_unsafe(tar, archive)
                tar.extractall(partial, filter="data")
            try:
                (partial / folder).rename(place / folder)
            except OSError:
                if not any((place / folder).iterdir()):
                    raise
        except BadInput:
            raise
        except Exception as error:  # a damaged archive may raise any exception
            told = f"damaged archive, or disk full ({archive}: {_one_line(error)})"
            raise BadInput(f"{told}: download it again") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return place / folder


def _refuse_unsafe(tar: tarfile.TarFile, archive: Path) -> None:
    for member in tar:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise BadInput(f"unsafe member {member.name!r} ({archive}): delete the archive and download it again")


def _one_line(error: Exception) -> str:
    """Return an exception's message without line breaks."""
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
