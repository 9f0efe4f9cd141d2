"""The demo: its answers, and the page in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.places import ROOT
from helpers.tiny_recipe import TINY
from resfit import demo
from resfit.cli import main
from resfit.data import load_dataset
from resfit.demo.drawings import drawings
from resfit.errors import BadInput
from resfit.modelfile import load
from resfit.recipe import DataConfig, Recipe
from resfit.run import train
from resfit.trained import Trained

PUBLISHED = ROOT / "results" / "models" / "cifar10-best-cpu"


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
    with pytest.raises(BadInput, match=r"cannot be read as an image \(broken\.png, .+\)"):
        demo.read_image(load(run), tmp_path / "broken.png")


def test_samples_are_of_the_networks_data_or_digits_for_digits_or_none(run: Path, tmp_path: Path) -> None:
    names = [name for _, name in demo.sample_images(Trained(run)).images]
    assert names == list("01234567")
    alone = tmp_path / "model.safetensors"
    shutil.copy(run / "model.safetensors", alone)
    lone = Trained(alone)
    assert [name for _, name in demo.sample_images(lone).images] == names
    lone.net.info = replace(lone.net.info, classes=("a",) * 10)
    none = demo.sample_images(lone)
    assert none.images == [] and "No test images were found" in none.note


def test_drawings_serve_a_network_that_knows_what_they_show(run: Path, tmp_path: Path) -> None:
    trained = Trained(run)
    trained.net.info = replace(trained.net.info, classes=("ship", "a", "cat", *"bcdefgh"))
    found = demo.sample_images(trained)
    assert [name for _, name in found.images] == ["ship", "cat"]
    assert all((pixels.shape, pixels.dtype) == ((1, 8, 8), torch.uint8) for pixels, _ in found.images)
    assert found.kind == "drawings" and "No test images were found" in found.note


def test_a_data_folder_that_cannot_be_used_is_said(run: Path, two_classes: Path) -> None:
    trained = Trained(run)
    assert trained.recipe is not None
    trained.recipe = trained.recipe.replace({"data.name": "folder", "data.val": 0})
    with pytest.raises(BadInput, match="other classes than folder"):
        demo.sample_images(trained, two_classes)


def test_a_class_without_a_test_image_is_left_out(two_classes: Path, tmp_path: Path) -> None:
    (two_classes / "medium").mkdir()
    Image.new("L", (8, 8), 120).save(two_classes / "medium" / "only.png")
    spec = {**TINY["spec"], "num_classes": 3}
    recipe = Recipe.from_dict({**TINY, "spec": spec, "data": {"name": "folder", "val": 0}, "augment": {}})
    train(recipe.replace({"train.epochs": 1}), out=tmp_path / "runs", data_dir=two_classes)
    found = demo.sample_images(Trained(tmp_path / "runs" / "tiny" / "0"), two_classes)
    assert [name for _, name in found.images] == ["dark", "light"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "no model (nowhere"),
        (["nowhere", "--port", "0"], "port is 0 (--port)"),
        (
            ["nowhere", "--host", "192.0.2.1"],
            "cannot serve at this address (192.0.2.1:any, cannot assign requested address)",
        ),
    ],
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


@contextmanager
def serving(target: Path, log: Path) -> Iterator[str]:
    """The address of the page of `target`, whose server finds no data set; `log` lists the server's connections."""
    environment = {name: value for name, value in os.environ.items() if name != "RESFIT_DATA_DIR"}
    words = [sys.executable, "-c", SERVER, str(log), str(target)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line
            yield address[0]
        finally:
            process.terminate()


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A real browser, or a skipped test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=flags, viewport={"width": 1100, "height": 900}
        )
        opened.set_default_timeout(120_000)  # milliseconds, as a busy machine needs
        yield opened
        opened.close()


def visit(target: Path, picture: Image.Image, folder: Path) -> tuple[str, str]:
    """What the page of `target` says in a browser of its third sample, and of `picture`. Nobody else is asked."""
    pytest.importorskip("gradio")
    picture.save(folder / "picture.png")
    (folder / "broken.png").write_bytes(b"no picture")
    log, requests = folder / "connections.txt", list[str]()
    with browser(folder / "profile") as opened, serving(target, log) as address:
        page = opened.new_page()
        page.on("request", lambda request: requests.append(request.url))
        said = use(page, address, folder)
    outside = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert requests and not outside
    connections = log.read_text().splitlines()
    assert all("127.0.0.1" in line or "localhost" in line for line in connections), connections
    return said


def use(page: Any, address: str, folder: Path) -> tuple[str, str]:
    """Click a sample, drop an image, drop a broken file; each time what belongs there appears."""
    page.goto(address)
    page.wait_for_selector("#samples img")
    page.screenshot(path=folder / "1-begin.png")

    page.click("#samples button:has(img) >> nth=2")
    page.wait_for_selector("#answer dd")
    page.wait_for_selector("#seen img")
    page.wait_for_selector("#looked img")
    page.screenshot(path=folder / "2-sample.png")
    sample, of_sample = page.get_attribute("#seen img", "src"), page.inner_text("#answer h2")
    assert len(page.query_selector_all("#answer dd")) == 10

    drop(page, folder / "picture.png")
    page.wait_for_selector(f"#seen img:not([src='{sample}'])")
    page.screenshot(path=folder / "3-dropped.png")
    of_picture = page.inner_text("#answer h2")
    page.click("#file [aria-label='Clear'], #file [aria-label='Remove this file']")
    page.wait_for_selector("#seen img", state="detached")

    drop(page, folder / "broken.png")
    page.wait_for_selector("#message:has-text('Cannot be read as an image (broken.png, ')")
    assert not page.query_selector_all("#seen img")
    page.screenshot(path=folder / "4-broken.png")
    return of_sample, of_picture


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    visit(run, Image.fromarray(digits()[0, 0].numpy()).resize((200, 160)), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the results do not lie beside the tests")
def test_the_page_of_the_network_that_comes_along(tmp_path: Path) -> None:
    pixels, name = drawings(["truck"], size=64, channels=3)[0]
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((320, 320))
    assert visit(PUBLISHED, picture, tmp_path) == ("bird", name)


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
