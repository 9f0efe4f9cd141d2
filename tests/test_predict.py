"""Answers for images: the network's own, in order, calibrated, and for every image that can be read."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resfit
from resfit.cli import main
from resfit.data.normalize import normalizer
from resfit.errors import BadInput
from resfit.modelfile import load, save_model
from resfit.modelheader import ModelInfo
from resfit.net import build
from resfit.predict import Predictions, _on_device
from resfit.spec import NetSpec

SPEC = NetSpec.from_dict(
    {"input": {"size": 8}, "stem": {"channels": 4}, "stages": [{"blocks": 1, "channels": 4}], "num_classes": 3}
)
CLASSES = ("cat", "dog, small", "eel")


def model(folder: Path, temperature: float | None = 0.5, spec: NetSpec = SPEC) -> Path:
    torch.manual_seed(0)
    net = build(spec)
    torch.nn.init.normal_(net.head.weight)
    channels = spec.input.channels
    info = ModelInfo(classes=CLASSES, mean=(0.4,) * channels, std=(0.2,) * channels, temperature=temperature)
    save_model(folder / "model.safetensors", net, spec, info)
    return folder / "model.safetensors"


def noise(seed: int, size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def pictures(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(n).save(folder / name)
    return [str(folder / name) for name in names]


def bomb(path: Path) -> Path:
    """A PNG that says it has 10^10 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def names(found: Predictions) -> list[str]:
    return [Path(p.image).name for p in found.images]


def test_probabilities_are_the_networks_at_its_temperature(tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, "a.png")
    (answer,) = resfit.predict(model(tmp_path), path).images
    net = load(tmp_path / "model.safetensors")
    pixels = torch.from_numpy(np.asarray(noise(0)).transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        logits = net(normalizer(net.info.mean, net.info.std, torch.device("cpu"))(pixels))[0]
    expected = dict(zip(CLASSES, (logits / 0.5).softmax(0).tolist(), strict=True))
    assert {c.name: c.probability for c in answer.classes} == pytest.approx(expected, rel=1e-4)
    assert [c.probability for c in answer.classes] == sorted((c.probability for c in answer.classes), reverse=True)
    plain = resfit.predict(model(tmp_path / "plain", temperature=None), path)
    assert plain.temperature is None
    assert plain.images[0].classes[0].probability == pytest.approx(max(logits.softmax(0).tolist()), rel=1e-4)


def test_a_folder_is_searched_all_the_way_down_in_natural_order(tmp_path: Path) -> None:
    root = tmp_path / "images"
    pictures(root, "10.png", "2.png", "B1.jpg", "a1.png", "deep/er/x.PNG", ".hidden.png", "._2.png", ".cache/y.png")
    (root / "notes.txt").write_text("no image")
    found = resfit.predict(model(tmp_path), root)
    assert names(found) == ["2.png", "10.png", "a1.png", "B1.jpg", "x.PNG"]
    assert found.unreadable == ()
    assert all(p.image.startswith(str(root)) for p in found.images)


def test_answers_do_not_depend_on_company(tmp_path: Path) -> None:
    paths = pictures(tmp_path, *(f"{n}.png" for n in range(300)))  # more than are decoded at a time
    together = resfit.predict(model(tmp_path), paths)
    assert names(together) == [f"{n}.png" for n in range(300)]
    (alone,) = resfit.predict(tmp_path, paths[299]).images
    assert alone.classes[0].name == together.images[299].classes[0].name
    assert alone.classes[0].probability == pytest.approx(together.images[299].classes[0].probability, rel=1e-4)


def test_pictures_in_memory_and_a_loaded_network(tmp_path: Path) -> None:
    net = load(model(tmp_path))
    (path,) = pictures(tmp_path, "a.png")
    found = resfit.predict(net, [noise(0), path, noise(0).convert("CMYK")], top=2)
    assert [p.image for p in found.images] == ["image 1", path, "image 3"]
    assert found.images[0].classes == found.images[1].classes
    assert all(len(p.classes) == 2 for p in found.images)
    assert names(resfit.predict(net, tmp_path.glob("*.png"))) == ["a.png"]
    (alone,) = resfit.predict(net, noise(0), top=2).images
    assert [c.name for c in alone.classes] == [c.name for c in found.images[0].classes]


def test_kinds_of_images_and_channels(tmp_path: Path) -> None:
    grey = NetSpec.from_dict({**SPEC.to_dict(), "input": {"channels": 1, "size": 8}})
    (tmp_path / "kinds").mkdir()
    for name, mode in (("a.png", "I;16"), ("b.tif", "L"), ("c.gif", "P"), ("d.jpg", "CMYK"), ("e.webp", "RGBA")):
        Image.new(mode, (50, 20)).save(tmp_path / "kinds" / name)
    for spec in (SPEC, grey):
        found = resfit.predict(model(tmp_path, spec=spec), tmp_path / "kinds")
        assert (len(found.images), found.unreadable) == (5, ())


def test_a_name_that_is_no_text_loses_no_answer(tmp_path: Path) -> None:
    (good,) = pictures(tmp_path, "good.png")
    os.link(good, os.fsencode(tmp_path) + b"/\xff.png")
    names, net = [os.fsencode(tmp_path) + b"/\xff.png", good], str(model(tmp_path))
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    for form in ([], ["--csv"], ["--json"]):
        command = [sys.executable, "-m", "resfit", "predict", net, *names, *form]
        done = subprocess.run(command, env=strict, capture_output=True, check=False)
        assert done.returncode == 0 and b"udcff.png" in done.stdout, done.stderr


def test_what_cannot_be_read_is_listed_and_the_rest_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (good,) = pictures(tmp_path, "good.png")
    broken, empty, text = tmp_path / "broken.png", tmp_path / "empty", tmp_path / "text.png"
    broken.write_bytes(Path(good).read_bytes()[:60])
    empty.mkdir()
    text.write_text("no picture")
    missing, huge = tmp_path / "missing.png", bomb(tmp_path / "bomb.png")
    bad = [str(path) for path in (broken, empty, text, missing, huge)]
    assert main(["predict", str(model(tmp_path)), *bad[:3], good, *bad[3:], "--json"]) == 1
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert [image["image"] for image in answer["images"]] == [good]
    assert [image["image"] for image in answer["unreadable"]] == bad
    lines = printed.err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["unreadable", path] for path in bad]
    for line, reason in zip(lines[1:], ("a folder without", "not an image", "no such file", "more than"), strict=True):
        assert reason in line


def test_a_folder_that_cannot_be_searched_is_listed_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good,) = pictures(tmp_path, "good.png")
    locked = tmp_path / "locked"
    locked.mkdir()

    def refuse(path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = resfit.predict(model(tmp_path), [locked, good])
    assert [one.image for one in found.images] == [good]
    assert [one.image for one in found.unreadable] == [str(locked)]


def test_the_command_prints_a_table_json_or_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, target = pictures(tmp_path, "a.png", "b.png"), str(model(tmp_path))
    assert main(["predict", target, *paths]) == 0
    table = capsys.readouterr().out
    assert "a.png" in table and "eel" in table and "temperature 0.500" in table
    assert main(["predict", target, *paths, "--csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["image"], row["rank"]) for row in rows] == [(p, r) for p in paths for r in "12"]
    assert main(["predict", target, *paths, "--json", "--top", "9"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["calibrated"] is True
    for image, row in zip(answer["images"], rows[::2], strict=True):
        assert sum(c["probability"] for c in image["classes"]) == pytest.approx(1)
        assert (row["class"], float(row["probability"])) == (
            image["classes"][0]["name"],
            pytest.approx(image["classes"][0]["probability"], abs=1e-6),
        )
    uncalibrated = str(model(tmp_path / "other", temperature=None))
    assert main(["predict", uncalibrated, *paths]) == 0
    assert "uncalibrated" in capsys.readouterr().out


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, "a.png")
    with pytest.raises(BadInput, match="no model"):
        resfit.predict(tmp_path / "nowhere", path)
    with pytest.raises(BadInput, match="top is 0"):
        resfit.predict(model(tmp_path), path, top=0)
    with pytest.raises(BadInput, match="no class names"):
        resfit.predict(build(SPEC), path)
    for images in (np.zeros((8, 8, 3), np.uint8), torch.zeros(1, 3, 8, 8)):
        with pytest.raises(BadInput, match="not an image"):
            resfit.predict(model(tmp_path), images)  # type: ignore[arg-type]
    renewed = load(tmp_path)
    renewed.reset_classifier(3)
    with pytest.raises(BadInput, match="no class names"):
        resfit.predict(renewed, path)
    odd = NetSpec.from_dict({**SPEC.to_dict(), "input": {"channels": 2, "size": 8}})
    with pytest.raises(BadInput, match="2 channels"):
        resfit.predict(model(tmp_path / "odd", spec=odd), path)


def test_a_network_that_is_given_stays_where_it_is(tmp_path: Path) -> None:
    """On a GPU, `to` would move it; here a copy is what can be seen."""
    net = load(model(tmp_path))
    assert _on_device(net, "auto") is net
    copied = _on_device(net, "cpu")
    assert copied is not net and next(copied.parameters()).data_ptr() != next(net.parameters()).data_ptr()
    answers = [resfit.predict(net, noise(0), device=device).images for device in ("auto", "cpu")]
    assert answers[0] == answers[1]
