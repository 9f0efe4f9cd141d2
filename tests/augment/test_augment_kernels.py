"""Kernels of resfit.augment against torchvision's v2 functionals, image by image with the same parameters."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from resfit.augment import colour, geometry
from resfit.errors import BadInput

SIZES = [(3, 32, 32), (1, 32, 32), (3, 24, 17)]


def pictures(count: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    """Noise over all levels, over a few levels, and one plain image at the end."""
    generator = torch.Generator().manual_seed(count + channels)
    noise = torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    noise[1::2] = noise[1::2] // 8 + 60
    noise[-1] = 77
    return noise


def spread(count: int, low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


def assert_within_one_level(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(("mode", "padding_mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_shift_crop_is_pad_and_crop(shape, mode, padding_mode, padding):
    images = pictures(2 * padding + 1, *shape)
    dy = torch.arange(2 * padding + 1)
    dx = dy.flip(0)
    padded = [reference.pad(image, [padding] * 4, padding_mode=padding_mode) for image in images]
    expected = [reference.crop(p, int(y), int(x), *shape[1:]) for p, y, x in zip(padded, dy, dx, strict=True)]
    assert torch.equal(geometry.shift_crop(images, dy, dx, padding, mode), torch.stack(expected))


def test_a_reflection_wider_than_the_image_is_refused():
    images, zero = pictures(2, 3, 8, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(BadInput, match=r"augment\.crop"):
        geometry.shift_crop(images, zero, zero, 4, "reflect")


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_shift_crop_moves_each_image_by_its_own_offset(data):
    n, c, h, w, padding = (data.draw(st.integers(1, 6)) for _ in range(5))
    offsets = st.lists(st.integers(0, 2 * padding), min_size=n, max_size=n)
    dy, dx = torch.tensor(data.draw(offsets)), torch.tensor(data.draw(offsets))
    images = torch.randint(256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    result = geometry.shift_crop(images, dy, dx, padding, "zero")
    for i in range(n):
        for y in range(h):
            for x in range(w):
                source_y, source_x = y + int(dy[i]) - padding, x + int(dx[i]) - padding
                inside = 0 <= source_y < h and 0 <= source_x < w
                expected = images[i, :, source_y, source_x] if inside else torch.zeros(c, dtype=torch.uint8)
                assert torch.equal(result[i, :, y, x], expected)


def test_flip_mirrors_the_masked_images_alone():
    images = pictures(4, 3, 5, 7)
    flipped = geometry.flip(images, torch.tensor([True, False, True, False]))
    assert torch.equal(flipped[::2], reference.horizontal_flip(images[::2]))
    assert torch.equal(flipped[1::2], images[1::2])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 1000))
def test_alternating_flip_flips_each_image_every_other_epoch(seed, epoch):
    images, coins = pictures(16, 1, 4, 4), geometry.flip_coins(torch.arange(16) * 7919, seed)
    now, then = (geometry.alternating_flip(images, coins, e) for e in (epoch, epoch + 1))
    assert torch.equal(then, now.flip(-1))
    assert torch.equal(geometry.alternating_flip(images, coins, epoch + 2), now)


def first_flips(index: torch.Tensor, seed: int) -> torch.Tensor:
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(len(index), 1, 1, 2)
    return geometry.alternating_flip(images, geometry.flip_coins(index, seed), 0)[:, 0, 0, 0] == 1


@pytest.mark.parametrize("seed", [0, 1, 2, 2**40])
def test_first_flips_are_fair_coins_of_the_image_and_the_seed(seed):
    index = torch.arange(20_000)
    coins = first_flips(index, seed)
    assert abs(coins.float().mean() - 0.5) < 0.015
    for other in (first_flips(index + 1, seed), first_flips(index, seed + 1), first_flips(index, seed + 2**33)):
        assert abs((coins == other).float().mean() - 0.5) < 0.015


def test_first_flips_do_not_depend_on_the_batch():
    index = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first_flips(index, 3)[:10], first_flips(index[:10], 3))


@settings(deadline=None, max_examples=60)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    side=st.integers(1, 25),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_cutout_covers_the_square_as_far_as_it_is_in_the_image(h, w, side, places):
    cy, cx = int(places[0] * (h - 1)), int(places[1] * (w - 1))
    images = torch.full((2, 3, h, w), 9, dtype=torch.uint8)
    fill = torch.tensor([1, 2, 3], dtype=torch.uint8)
    centres = torch.tensor([cy, 0]), torch.tensor([cx, w - 1])
    result = geometry.cutout(images, *centres, side, fill)
    for image, y, x in zip(result, *centres, strict=True):
        top, left = int(y) - side // 2, int(x) - side // 2
        expected = images[0].clone()
        expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = fill[:, None, None]
        assert torch.equal(image, expected)


def test_cutout_is_black_without_a_fill():
    covered = geometry.cutout(pictures(1) | 1, torch.tensor([0]), torch.tensor([31]), 4)
    assert (covered == 0).sum() == 3 * 2 * 3


def test_random_cutout_is_centred_anywhere():
    images = torch.ones(6000, 1, 8, 8, dtype=torch.uint8)
    covered = geometry.random_cutout(images, torch.Generator().manual_seed(0), 4) == 0
    along = sum(min(centre + 2, 8) - max(centre - 2, 0) for centre in range(8)) / 8
    assert covered.sum((1, 2, 3)).float().mean() == pytest.approx(along**2, rel=0.02)
    assert covered.any(0).all()


def test_random_crops_take_every_offset_alike():
    images = torch.zeros(9000, 1, 7, 7, dtype=torch.uint8)
    images[:, :, 3, 3] = 1
    moved = geometry.random_crop(images, torch.Generator().manual_seed(0), 1, "zero").float().mean((0, 1))
    assert torch.allclose(moved[2:5, 2:5], torch.full((3, 3), 1 / 9), atol=0.015)
    assert moved[2:5, 2:5].sum() == pytest.approx(1)


def test_random_flip_mirrors_half_of_the_images():
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(10_000, 1, 1, 2)
    flipped = geometry.random_flip(images, torch.Generator().manual_seed(0))[:, 0, 0, 0]
    assert flipped.float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shape", SIZES)
def test_rotate(shape):
    degrees = torch.cat((spread(40, -179.3, 178.1), torch.tensor([0, 45, 90, -90, 180])))
    images = pictures(len(degrees), *shape)
    expected = torch.stack([reference.rotate(i, float(d)) for i, d in zip(images, degrees, strict=True)])
    assert torch.equal(geometry.rotate(images, degrees), expected)


@pytest.mark.parametrize("shape", SIZES)
def test_translate(shape):
    dy, dx = torch.tensor([0, 1, -3, 7, -40, 0, 16]), torch.tensor([0, -2, 5, 0, 3, 50, -16])
    images = pictures(len(dy), *shape)
    expected = [
        reference.affine(i, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0]) for i, y, x in zip(images, dy, dx, strict=True)
    ]
    assert torch.equal(geometry.translate(images, dy, dx), torch.stack(expected))


def test_random_rotations_and_translations_stay_within_their_range():
    columns = torch.arange(1, 33, dtype=torch.uint8).expand(2000, 1, 32, 32)
    moved = geometry.random_translate(columns, torch.Generator().manual_seed(0), 0.125)
    shifts = {int(v) for v in (17 - moved[:, 0, 16, 16].int()).unique()}
    assert shifts == set(range(-4, 5))

    # A mark on the right edge, 15 pixels from the centre, climbs 15 x tan(angle) at most.
    rows = torch.arange(1, 32, dtype=torch.uint8)[:, None].expand(2000, 1, 31, 31)
    turned = geometry.random_rotate(rows, torch.Generator().manual_seed(0), 10)
    slope = turned[:, 0, 15, 27].int() - turned[:, 0, 15, 3].int()
    assert slope.abs().max() == 4
    assert abs(slope.float().mean()) < 0.15


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.adjust_brightness, reference.adjust_brightness),
        (colour.adjust_contrast, reference.adjust_contrast),
        (colour.adjust_saturation, reference.adjust_saturation),
        (colour.adjust_sharpness, reference.adjust_sharpness),
    ],
)
def test_blends(shape, ours, theirs):
    factors = torch.cat((spread(30, 0, 2), torch.ones(2)))
    images = pictures(len(factors), *shape)
    expected = torch.stack([theirs(image, float(f)) for image, f in zip(images, factors, strict=True)])
    result = ours(images, factors)
    assert_within_one_level(result, expected)
    assert torch.equal(result[-2:], images[-2:])


def test_saturation_leaves_grey_images_and_sharpness_tiny_ones():
    grey, tiny = pictures(2, 1), pictures(2, 3, 2, 5)
    assert torch.equal(colour.adjust_saturation(grey, torch.zeros(2)), grey)
    assert torch.equal(colour.adjust_sharpness(tiny, torch.zeros(2)), tiny)


def test_random_factors_fill_their_range():
    images = torch.full((4000, 1, 2, 2), 100, dtype=torch.uint8)
    seen = colour.random_adjust(images, torch.Generator().manual_seed(0), colour.adjust_brightness, 0.2)[:, 0, 0, 0]
    assert (int(seen.min()), int(seen.max())) == (80, 119)
    assert seen.float().mean() == pytest.approx(99.5, abs=0.8)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("kernel", [3, 5])
def test_gaussian_blur(shape, kernel):
    sigma = spread(12, 0.1, 3)
    images = pictures(len(sigma), *shape)
    expected = torch.stack([reference.gaussian_blur(i, kernel, float(s)) for i, s in zip(images, sigma, strict=True)])
    assert_within_one_level(colour.gaussian_blur(images, sigma.float(), kernel), expected)


def test_a_blur_of_sigma_zero_changes_nothing():
    images = pictures(3)
    assert torch.equal(colour.gaussian_blur(images, torch.zeros(3), 3), images)


@pytest.mark.parametrize(("largest", "reach"), [(0.4, 1), (0.5, 1), (1.0, 2), (1.4, 3), (50.0, 4)])
def test_random_blur_reaches_two_sigma_as_far_as_the_image_lets_it(largest, reach):
    images = torch.zeros(200, 1, 5, 31, dtype=torch.uint8)
    images[:, :, :, 15] = 255
    blurred = colour.random_blur(images, torch.Generator().manual_seed(0), largest)
    touched = blurred.amax((0, 1, 2)).nonzero().flatten()
    assert (int(touched.min()), int(touched.max())) == (15 - reach, 15 + reach)
    assert len(blurred[:, 0, 0, 15].unique()) > 5


@pytest.mark.parametrize("shape", SIZES)
def test_posterize_and_solarize(shape):
    bits, threshold = torch.arange(9), torch.tensor([0, 1, 59.5, 60, 127, 128, 254.2, 254.9, 255])
    images = pictures(9, *shape)
    expected = [reference.posterize(image, int(b)) for image, b in zip(images, bits, strict=True)]
    assert torch.equal(colour.posterize(images, bits), torch.stack(expected))
    expected = [reference.solarize(image, float(t)) for image, t in zip(images, threshold, strict=True)]
    assert torch.equal(colour.solarize(images, threshold), torch.stack(expected))


@pytest.mark.parametrize("shape", SIZES)
def test_autocontrast_and_equalize(shape):
    images = torch.cat((pictures(9, *shape), pictures(4, *shape) // 128 * 255, pictures(2, *shape) * 0 + 255))
    assert_within_one_level(colour.autocontrast(images), reference.autocontrast(images))
    assert torch.equal(colour.equalize(images), reference.equalize(images))
