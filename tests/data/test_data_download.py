from __future__ import annotations

import hashlib
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_cifar import CONFIG, contents, expect, tar
from resfit.data import cifar, load_dataset
from resfit.data.download import download, extract, read_checked
from resfit.errors import BadInput

CONTENT = bytes(range(256)) * 20_000  # several blocks


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; those in `dropped` end after the half of what was announced."""

    files: dict[str, bytes]
    dropped: frozenset[str] = frozenset()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.server.dropped else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.files = {"file": CONTENT}
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_download_is_the_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    download(f"{server.url}/file", path, md5(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def refused(server: Server, tmp_path: Path, name: str, expected: str) -> str:
    """The line with which a download is refused; nothing of it may be left."""
    with pytest.raises(BadInput) as error:
        download(f"{server.url}/{name}", tmp_path / "place" / name, expected)
    assert not any(tmp_path.glob("place/*"))
    message = str(error.value)
    assert "\n" not in message and server.url in message and str(tmp_path / "place") in message
    return message


def test_a_dropped_connection_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.dropped = frozenset({"file"})
    message = refused(server, tmp_path, "file", md5(CONTENT))
    assert "the connection dropped after 2,560,000 of 5,120,000 bytes" in message


def test_a_wrong_file_leaves_nothing(server: Server, tmp_path: Path) -> None:
    assert "its MD5 is wrong" in refused(server, tmp_path, "file", md5(b"other"))


def test_a_missing_page_is_one_line(server: Server, tmp_path: Path) -> None:
    assert "cannot download gone" in refused(server, tmp_path, "gone", md5(CONTENT))


def test_no_server_is_one_line(server: Server, tmp_path: Path) -> None:
    server.server_close()
    assert "cannot download file" in refused(server, tmp_path, "file", md5(CONTENT))


@pytest.fixture
def official(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server from which a tiny CIFAR-10 comes."""
    from torchvision.datasets import CIFAR10

    made = contents("cifar10")
    archive = tar("cifar-10-batches-py", made)
    expect(monkeypatch, "cifar10", made, archive)
    server.files["cifar.tar.gz"] = archive
    monkeypatch.setattr(CIFAR10, "url", f"{server.url}/cifar.tar.gz")
    return server


@pytest.mark.parametrize("given", [True, False])
def test_cifar10_is_downloaded_once(official: Server, given: bool, tmp_path: Path, own_places: Path) -> None:
    data_dir = tmp_path / "given" if given else None
    lines: list[str] = []
    first = load_dataset(CONFIG, size=32, data_dir=data_dir, progress=lines.append)
    place = tmp_path / "given" if given else own_places
    assert lines == [f"downloading CIFAR10 to {place}"]
    assert [path.name for path in place.iterdir()] == ["cifar-10-batches-py"]
    official.files.clear()
    assert load_dataset(CONFIG, size=32, data_dir=data_dir).digest == first.digest


def test_two_downloads_at_once_both_succeed(official: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, met, extracted = cifar.extract, threading.Barrier(2, timeout=60), threading.Event()

    def in_turn(archive: Path, *arguments: Any) -> Path:
        if met.wait() == 1:  # both have the archive now; one comes after the other has removed it
            extracted.wait(timeout=60)
            while archive.exists():
                time.sleep(0.01)
        folder = real(archive, *arguments)
        extracted.set()
        return folder

    monkeypatch.setattr(cifar, "extract", in_turn)
    with ThreadPoolExecutor() as pool:
        loading = [pool.submit(load_dataset, CONFIG, size=32, data_dir=tmp_path / "given") for _ in range(2)]
        first, second = (each.result() for each in loading)
    assert first.digest == second.digest
    assert [path.name for path in (tmp_path / "given").iterdir()] == ["cifar-10-batches-py"]


def test_an_empty_folder_is_filled_by_a_download(official: Server, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert len(load_dataset(CONFIG, size=32, data_dir=tmp_path).test) == 10


def test_a_dropped_download_can_be_tried_again(official: Server, tmp_path: Path) -> None:
    official.dropped = frozenset({"cifar.tar.gz"})
    with pytest.raises(BadInput, match="the connection dropped"):
        load_dataset(CONFIG, size=32, data_dir=tmp_path / "given")
    official.dropped = frozenset()
    assert len(load_dataset(CONFIG, size=32, data_dir=tmp_path / "given").test) == 10


def test_content_is_read_only_where_its_md5_is_right(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert read_checked(path, md5(CONTENT)) == CONTENT
    with pytest.raises(BadInput, match="MD5 is wrong"):
        read_checked(path, md5(b""))
    with pytest.raises(BadInput, match="a file is missing"):
        read_checked(tmp_path / "none", md5(b""))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


HOSTILE = {
    "parent": member("../escaped"),
    "parent inside": member("data/../../escaped"),
    "absolute": member("/tmp/resfit-escaped"),
    "symbolic link": member("data/link", tarfile.SYMTYPE, "../../escaped"),
    "harmless link": member("data/link", tarfile.SYMTYPE, "file"),
    "hard link": member("data/link", tarfile.LNKTYPE, "data/file"),
    "device": member("data/null", tarfile.CHRTYPE),
    "fifo": member("data/fifo", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_unsafe_member_is_refused_before_anything_is_unpacked(case: str, tmp_path: Path) -> None:
    content = tar("data", {"file": b"fine"}, extra=(HOSTILE[case],))
    archive = tmp_path / "place" / "a.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(content)
    with pytest.raises(BadInput, match="unsafe member"):
        extract(archive, "data", md5(content))
    assert [path.name for path in tmp_path.rglob("*")] == ["place", "a.tar.gz"]


def test_an_archive_is_unpacked_beside_it(tmp_path: Path) -> None:
    content = tar("data", {"file": b"fine"})
    (tmp_path / "a.tar.gz").write_bytes(content)
    folder = extract(tmp_path / "a.tar.gz", "data", md5(content))
    assert folder == tmp_path / "data" and (folder / "file").read_bytes() == b"fine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "data"]
    (folder / "file").write_bytes(b"kept")
    assert (extract(tmp_path / "a.tar.gz", "data", md5(content)) / "file").read_bytes() == b"kept"


def broken_archives() -> dict[str, bytes]:
    whole = tar("data", {"file": CONTENT})
    other = tar("other", {"file": CONTENT})
    return {"truncated": whole[: len(whole) // 2], "no tar": b"text", "empty": b"", "without the folder": other}


@pytest.mark.parametrize("case", broken_archives())
def test_a_broken_archive_is_one_line(case: str, tmp_path: Path, one_line: Callable[..., str]) -> None:
    content = broken_archives()[case]
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(BadInput, match="damaged archive") as error:
        extract(tmp_path / "a.tar.gz", "data", md5(content))
    one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
