from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resfit.data.decode import decode, decode_all, decode_one, pixels_of
from resfit.errors import BadInput

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def colours(path: Path, channels: int = 3, size: int = 8) -> np.ndarray:
    """The pixels of a file, int [size, size, channels]."""
    pixels = decode(path, size=size, channels=channels)
    assert pixels.shape == (channels, size, size) and pixels.dtype == np.uint8
    return pixels.transpose(1, 2, 0).astype(int)


def assert_colour(pixels: np.ndarray, colour: tuple[int, ...], tolerance: int = 0) -> None:
    assert np.abs(pixels - np.array(colour)).max() <= tolerance


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.jpg", "a.JPEG", "a.gif", "a.tif"])
def test_formats(tmp_path: Path, name: str) -> None:
    path = save(Image.new("RGB", (20, 20), (200, 100, 50)), tmp_path / name)
    assert_colour(colours(path), (200, 100, 50), tolerance=3)


def test_a_file_is_what_it_contains_whatever_its_name(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (20, 20), RED), tmp_path / "a.jpg", format="PNG")
    assert_colour(colours(path), RED)


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (20, 20), RED), tmp_path / "a.png", format="PCX")
    with pytest.raises(OSError, match="cannot identify"):
        decode(path, size=8, channels=3)


def test_pixels_in_floating_point_are_refused_rather_than_read_as_black(tmp_path: Path) -> None:
    path = save(Image.new("F", (9, 9), 0.9), tmp_path / "a.tif")
    with pytest.raises(ValueError, match="floating-point"):
        decode(path, size=8, channels=3)


def test_pixels_of_32_bits_are_refused_but_for_png_where_they_are_of_16(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((9, 9), 200, np.int32))
    with pytest.raises(ValueError, match="32-bit"):
        decode(save(image, tmp_path / "a.tif"), size=8, channels=3)
    with pytest.raises(ValueError, match="32-bit"):
        pixels_of(image, size=8, channels=3)
    sixteen = save(Image.fromarray(np.full((9, 9), 200 * 257, np.uint16)), tmp_path / "a.png")
    assert_colour(colours(sixteen), (200, 200, 200))


def test_a_clear_grey_of_16_bits_is_laid_on_white(tmp_path: Path) -> None:
    values = np.full((8, 8), 5000, np.uint16)
    values[:, 4:] = 100 * 257
    path = tmp_path / "a.png"
    save(Image.fromarray(values), path, transparency=5000)
    pixels = decode(path, size=8, channels=1)[0]
    assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] == 100).all()


def test_damaged_exif_data_is_no_ones_concern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(Image.new("RGB", (20, 20), RED), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert not isinstance(decode_one(path, size=8, channels=3), str)
    assert not heard


def test_grey_and_colour_become_what_is_asked_for(tmp_path: Path) -> None:
    grey = save(Image.new("L", (9, 9), 77), tmp_path / "grey.png")
    assert_colour(colours(grey), (77, 77, 77))
    assert_colour(colours(grey, channels=1), (77,))
    colour = save(Image.new("RGB", (9, 9), WHITE), tmp_path / "colour.png")
    assert_colour(colours(colour, channels=1), (255,))


def test_sixteen_bits_are_scaled_rather_than_clipped(tmp_path: Path) -> None:
    ramp = np.repeat(np.array([0, 257, 257 * 128, 65535], np.uint16)[:, None], 4, axis=1)
    path = save(Image.fromarray(ramp), tmp_path / "deep.png")
    with Image.open(path) as image:
        assert image.mode == "I;16"
    assert colours(path, channels=1, size=4)[:, 0, 0].tolist() == [0, 1, 128, 255]


def test_inverted_greys_of_16_bits_are_inverted(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((8, 8), 200 * 257, np.uint16)).save(path, tiffinfo={262: 0})
    assert_colour(colours(path, channels=1), (55,))


def test_bombs_are_refused_whatever_warnings_are_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = save(Image.new("RGB", (20, 8), RED), tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Image.DecompressionBombError):
            decode(path, size=8, channels=3)
    assert decode_one(path, size=8, channels=3) == "more than 100 pixels, scale it down"


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), BLUE).convert("P", palette=Image.Palette.ADAPTIVE)
    assert_colour(colours(save(image, tmp_path / "palette.png")), BLUE)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "ink.jpg", quality=95)
    assert_colour(colours(path), RED, tolerance=6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "clear.png"
    if mode == "P":
        save(Image.new("P", (8, 8), 0), path, transparency=0)
    else:
        save(Image.new(mode, (8, 8), (0,) * len(mode)), path)
    assert_colour(colours(path), WHITE)
    half = save(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), tmp_path / "half.png")
    assert_colour(colours(half), (127, 127, 127), tolerance=1)


def test_exif_turns_the_image(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), RED)
    image.paste(GREEN, (0, 0, 16, 8))  # green above red
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: green is on the right
    pixels = colours(save(image, tmp_path / "turned.png", exif=exif))
    assert_colour(pixels[:, 5:], GREEN)
    assert_colour(pixels[:, :3], RED)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_the_middle_is_cut_out_and_the_aspect_kept(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape, RED)
    left, top = (shape[0] - 20) // 2, (shape[1] - 20) // 2
    image.paste(BLUE, (left, top, left + 20, top + 20))
    pixels = colours(save(image, tmp_path / "wide.png"))
    assert_colour(pixels[1:-1, 1:-1], BLUE)
    assert_colour(pixels, BLUE, tolerance=40)  # the filter mixes a little of the surroundings into the border


def test_extreme_shapes_are_decoded(tmp_path: Path) -> None:
    assert_colour(colours(save(Image.new("RGB", (1, 900), GREEN), tmp_path / "thin.png")), GREEN)


def bomb() -> bytes:
    """A PNG of a few bytes that announces 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def small_bomb() -> bytes:
    """Between Pillow's limit, where it warns, and twice that, where it refuses: 10,000 x 10,000 real pixels."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, format="PNG")
    return buffer.getvalue()


def whole_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, format="JPEG")
    return buffer.getvalue()


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.jpg": (lambda: whole_jpeg()[:1500], "image file is truncated"),
    "empty.png": (bytes, "not an image of a known format"),
    "text.png": (lambda: b"<html>not found</html>", "not an image of a known format"),
    "bomb.png": (bomb, "more than 89,478,485 pixels, scale it down"),
    "small_bomb.png": (small_bomb, "more than 89,478,485 pixels, scale it down"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_image_is_named_and_good_ones_are_not(tmp_path: Path, name: str) -> None:
    good = save(Image.new("RGB", (8, 8), RED), tmp_path / "good.png")
    damaged = tmp_path / "class" / name
    damaged.parent.mkdir()
    content, why = DAMAGED[name]
    damaged.write_bytes(content())
    assert sum(map(len, decode_all([good, good], root=tmp_path, size=8, channels=3))) == 2
    with pytest.raises(BadInput) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning alone would pass unheard
        list(decode_all([good, damaged, good], root=tmp_path, size=8, channels=3))
    assert str(error.value).startswith(f"1 of 3 images are unreadable (class/{name}, {why}")
    assert str(error.value).endswith("): repair or remove them")


def test_every_damaged_image_is_counted_over_all_blocks(tmp_path: Path) -> None:
    good = save(Image.new("RGB", (8, 8), RED), tmp_path / "good.png")
    damaged = [tmp_path / f"{i:02}.png" for i in range(12)]
    for path in damaged:
        path.write_bytes(b"")
    files = [*damaged[:6], *[good] * 300, *damaged[6:]]
    with pytest.raises(BadInput) as error:
        list(decode_all(files, root=tmp_path, size=4, channels=1))
    names = "; ".join(f"{i:02}.png, not an image of a known format" for i in range(10))
    assert str(error.value) == f"12 of 312 images are unreadable ({names}; and 2 more): repair or remove them"


def test_blocks_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = [save(Image.new("L", (4, 4), i % 256), tmp_path / f"{i}.bmp") for i in range(260)]
    pixels = np.concatenate(list(decode_all(files, root=tmp_path, size=4, channels=1)))
    assert pixels[:, 0, 0, 0].tolist() == [i % 256 for i in range(260)]
