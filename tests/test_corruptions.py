"""Damaged images: the same ones every time, worse with severity, for grey and colour."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.golden import VALUES, pictures, values
from resfit.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from resfit.errors import BadInput

KINDS = tuple(CORRUPTIONS)
DRAWN = set(KINDS) - {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg"}


def distance(damaged: np.ndarray, images: np.ndarray) -> float:
    return float(np.abs(damaged.astype(int) - images.astype(int)).mean())


def test_the_fifteen_kinds_of_four_groups():
    groups = [corruption.group for corruption in CORRUPTIONS.values()]
    assert {group: groups.count(group) for group in groups} == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_damage_grows_with_severity_and_keeps_the_form(kind, channels):
    images = pictures(channels)
    before = images.copy()
    damaged = [corrupt(images, kind, severity) for severity in SEVERITIES]
    assert np.array_equal(images, before)
    assert all(found.dtype == np.uint8 and found.shape == images.shape for found in damaged)
    distances = [distance(found, images) for found in damaged]
    assert distances == sorted(distances)
    assert distances[0] > 0.5
    assert distances[-1] > 1.5 * distances[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_images_damage_depends_on_seed_kind_severity_and_index_alone(kind):
    images = pictures()
    whole = corrupt(images, kind, 3, seed=5)
    assert np.array_equal(whole[:4], corrupt(images[:4], kind, 3, seed=5))
    assert np.array_equal(whole, corrupt(images, kind, 3, seed=6)) == (kind not in DRAWN)
    same = np.repeat(images[:1], 2, axis=0)
    first, second = corrupt(same, kind, 3)
    assert np.array_equal(first, second) == (kind not in DRAWN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [8, 48])
def test_any_side_will_do(kind, side):
    assert distance(corrupt(pictures(side=side, count=2), kind, 5), pictures(side=side, count=2)) > 1


def test_brightness_and_contrast_by_hand():
    image = np.array([[[[100, 200], [100, 200]]]], dtype=np.uint8)
    assert corrupt(image, "brightness", 1).tolist() == [[[[115, 215], [115, 215]]]]  # + 0.06 x 255
    assert corrupt(image, "contrast", 2).tolist() == [[[[122, 178], [122, 178]]]]  # 150 -/+ 0.55 x 50


def test_blurs_keep_an_even_image():
    even = np.full((1, 3, 32, 32), 90, dtype=np.uint8)
    for kind in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic", "pixelate"):
        assert np.array_equal(corrupt(even, kind, 5), even), kind


@pytest.mark.parametrize(("kind", "severity", "line"), [("frog", 1, "did you mean fog"), ("fog", 6, "from 1 to 5")])
def test_what_is_not_in_the_set_is_refused(kind, severity, line):
    with pytest.raises(BadInput, match=line):
        corrupt(pictures(), kind, severity)


def test_a_set_that_has_a_name_stays_as_it_is():
    """Accuracies on it are compared between records; regenerate_corruptions.py is for a set of another name."""
    committed, now = json.loads(VALUES.read_text()), values()
    assert now["set"] == committed["set"]
    for kind, expected in committed["pixels"].items():
        np.testing.assert_allclose(now["pixels"][kind], expected, atol=0.05, err_msg=kind)
