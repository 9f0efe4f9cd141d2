"""The demo: its answers, and the page in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_recipe import TINY

from resfit import demo
from resfit.cli import main
from resfit.data import load_dataset
from resfit.errors import BadInput
from resfit.modelfile import load
from resfit.recipe import DataConfig, Recipe
from resfit.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    train(Recipe.from_dict({**TINY, "augment": {}, "train": {**TINY["train"], "epochs": 1}}), out=out)
    return out / "tiny" / "0"


def digits() -> torch.Tensor:
    return load_dataset(DataConfig(name="digits", val=200), size=8, channels=1).test.images


def test_an_answer_holds_what_the_page_shows(run: Path) -> None:
    net, pixels = load(run), digits()[3]
    found = demo.answer(net, pixels)
    values = list(found.probabilities.values())
    assert values == sorted(values, reverse=True)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    scaled = (pixels / 255 - net.info.mean[0]) / net.info.std[0]
    expected = (net(scaled[None])[0] / (net.info.temperature or 1.0)).softmax(0).tolist()
    assert [found.probabilities[name] for name in "0123456789"] == pytest.approx(expected, rel=1e-4)
    assert found.seen.size == found.looked.size == (288, 288)
    assert np.array_equal(np.asarray(found.seen)[::36, ::36], pixels[0].numpy())
    assert found.looked.mode == "RGB"


def test_a_file_is_read_at_the_networks_size(run: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (60, 31), (90, 90, 90, 255)).save(tmp_path / "a.png")
    pixels = demo.read_image(load(run), tmp_path / "a.png")
    assert (tuple(pixels.shape), pixels.dtype) == ((1, 8, 8), torch.uint8)
    assert pixels.unique().tolist() == [90]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut off"])
def test_a_broken_file_has_its_line(run: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(BadInput, match=r"cannot be read as an image \(broken\.png\)"):
        demo.read_image(load(run), tmp_path / "broken.png")


def test_samples_are_of_the_networks_data_or_digits_for_digits_or_none(run: Path, tmp_path: Path) -> None:
    net = load(run)
    names = [name for _, name in demo.sample_images(net, run)]
    assert names == list("01234567")
    alone = tmp_path / "model.safetensors"
    shutil.copy(run / "model.safetensors", alone)
    assert [name for _, name in demo.sample_images(net, alone)] == names
    net.info = type(net.info)(classes=("a",) * 10, mean=net.info.mean, std=net.info.std)
    assert demo.sample_images(net, alone) == []


@pytest.mark.parametrize(
    ("words", "line"), [(["nowhere"], "no model (nowhere"), (["nowhere", "--port", "0"], "port is 0 (--port)")]
)
def test_each_mistake_has_its_line(capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert main(["demo", *words]) == 2
    assert line in capsys.readouterr().err


def test_missing_gradio_is_said(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "as it was")
    assert main(["demo", str(run)]) == 2
    assert "pip install 'resfit[demo]'" in capsys.readouterr().err


# Notes every address that the server connects to or looks up, as Python's audit events tell it.
SERVER = """
import sys
log = open(sys.argv[1], "w", buffering=1)
def note(event, arguments):
    if event == "socket.connect":
        print(arguments[1], file=log)
    elif event == "socket.getaddrinfo":
        print(arguments[:2], file=log)
sys.addaudithook(note)
from resfit.cli import main
sys.exit(main(["demo", *sys.argv[2:]]))
"""


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The page's address, and the file that lists the server's connections."""
    pytest.importorskip("gradio")
    log = tmp_path / "connections.txt"
    words = [sys.executable, "-c", SERVER, str(log), str(run)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line
            yield address[0], log
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_page_in_a_browser(server: tuple[str, Path], tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    address, log = server
    Image.fromarray(digits()[0, 0].numpy()).resize((200, 160)).save(tmp_path / "digit.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=chromium,
            args=flags,
            viewport={"width": 1100, "height": 900},
        )
        page = browser.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        use(page, address, tmp_path)
        browser.close()
    outside = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert not outside
    connections = log.read_text().splitlines()
    assert all("127.0.0.1" in line or "localhost" in line for line in connections), connections


def use(page: Any, address: str, folder: Path) -> None:
    """Click a sample, drop an image, drop a broken file; each time what belongs there appears."""
    page.goto(address)
    page.wait_for_selector("#samples img")
    page.screenshot(path=folder / "1-begin.png")

    page.click("#samples button:has(img) >> nth=2")
    page.wait_for_selector("#answer dd")
    page.wait_for_selector("#seen img")
    page.wait_for_selector("#looked img")
    page.screenshot(path=folder / "2-sample.png")
    first = page.inner_text("#answer")
    assert len(page.query_selector_all("#answer dd")) == 10

    drop(page, folder / "digit.png")
    page.wait_for_function("before => document.querySelector('#answer').innerText != before", arg=first)
    page.screenshot(path=folder / "3-dropped.png")
    page.click("#file [aria-label='Clear'], #file [aria-label='Remove this file']")
    page.wait_for_selector("#seen img", state="detached")

    drop(page, folder / "broken.png")
    page.wait_for_selector("#message:has-text('Cannot be read as an image (broken.png)')")
    assert not page.query_selector_all("#seen img")
    page.screenshot(path=folder / "4-broken.png")


def drop(page: Any, file: Path) -> None:
    """Drop a file on the page's drop zone, as a mouse does."""
    content = list(file.read_bytes())
    transfer = page.evaluate_handle(
        """([content, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], name, {type: "image/png"}));
            return transfer;
        }""",
        [content, file.name],
    )
    page.dispatch_event("#file button", "drop", {"dataTransfer": transfer})
