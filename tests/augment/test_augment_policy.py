"""The policies against torchvision's: the same operations at the same strengths, drawn for each image alone."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from resfit.augment import policy

NAMES = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}
GEOMETRIC = {"identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
AUTO = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
SPACES = {  # strengths, torchvision's class, steps of their grid
    "trivial": (policy.trivial_spans(), v2.TrivialAugmentWide(), policy.BINS),
    "rand": (policy.rand_spans(32, 32), v2.RandAugment(), policy.BINS),
    "autoaugment": (policy.auto_spans(32, 32), AUTO, policy.LEVELS),
}
OPERATIONS = [(space, name) for space, (spans, _, _) in SPACES.items() for name in spans]


def pictures(count: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count + channels)
    noise = torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    noise[1::2] = noise[1::2] // 8 + 60
    return noise


def torchvision_result(image: torch.Tensor, name: str, strength: float) -> torch.Tensor:
    reference, nearest = v2.TrivialAugmentWide(), InterpolationMode.NEAREST
    return reference._apply_image_or_video_transform(image, NAMES[name], strength, nearest, reference._fill)


def assert_same(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= (0 if name in GEOMETRIC | {"posterize", "solarize", "equalize"} else 1), name


@pytest.mark.parametrize("space", SPACES)
def test_spans_are_torchvisions(space):
    spans, reference, bins = SPACES[space]
    theirs = reference._AUGMENTATION_SPACE
    assert {NAMES[name] for name in spans} == set(theirs) | ({"Identity"} if space == "autoaugment" else set())
    for name, span in spans.items():
        strengths, signed = theirs.get(NAMES[name], (lambda *_: None, False))
        expected = strengths(bins, 32, 32)
        assert span.signed == signed
        if expected is not None:
            assert torch.equal(policy.strengths_of(span, bins), expected.double())


def test_the_cifar10_policy_is_torchvisions():
    ours = [tuple((NAMES[name], chance, level) for name, chance, level in pair) for pair in policy.CIFAR10_POLICY]
    theirs = [tuple((name, chance, level or 0) for name, chance, level in pair) for pair in AUTO._policies]
    assert ours == theirs


def test_rand_translations_go_by_the_side_that_they_move_along():
    spans = policy.rand_spans(10, 20)
    assert spans["translate_x"].strongest == 2 * spans["translate_y"].strongest == pytest.approx(150 / 331 * 20)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("space", "name"), OPERATIONS)
def test_operation_is_torchvisions_at_every_strength(space, name, channels):
    spans, _, bins = SPACES[space]
    span = spans[name]
    strengths = policy.strengths_of(span, bins)
    strengths = torch.cat((strengths, -strengths)) if span.signed else strengths
    images = pictures(len(strengths), channels)
    ours = policy.OPERATIONS[name](images, strengths)
    theirs = [torchvision_result(image, name, float(s)) for image, s in zip(images, strengths, strict=True)]
    assert_same(name, ours, torch.stack(theirs))


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate", "translate_x"])
@pytest.mark.parametrize("size", [(28, 28), (31, 17)])
def test_geometry_on_other_sizes_differs_half_way_between_pixels_alone(name, size):
    strengths = policy.strengths_of(policy.trivial_spans()[name])
    images = pictures(len(strengths), 1, *size) | 1
    theirs = [torchvision_result(image, name, float(s)) for image, s in zip(images, strengths, strict=True)]
    assert (policy.OPERATIONS[name](images, strengths) != torch.stack(theirs)).float().mean() < 1e-3


@pytest.mark.parametrize("level", [None, 9])
def test_each_image_draws_its_own_operation_strength_and_sign(level):
    spans = policy.trivial_spans()
    choice, strength = policy.draw(28_000, spans, torch.Generator().manual_seed(0), level)
    assert torch.bincount(choice).float() / 28_000 == pytest.approx([1 / 14] * 14, abs=0.007)
    turns = strength[choice == list(spans).index("rotate")]
    assert (turns < 0).float().mean() == pytest.approx(0.5 if level else 30 / 62, abs=0.04)
    magnitudes, counts = turns.abs().unique(return_counts=True)
    expected = policy.strengths_of(spans["rotate"])
    assert torch.equal(magnitudes, expected if level is None else expected[9:10])
    assert counts.max() < 2 * counts.min()
    bits = strength[choice == list(spans).index("posterize")]
    assert bits.min() >= 2


def test_apply_gives_each_image_its_own_operation():
    spans = policy.trivial_spans()
    images = pictures(120)
    choice, strength = policy.draw(120, spans, torch.Generator().manual_seed(1))
    result = policy.apply(images, list(spans), choice, strength)
    assert len(choice.unique()) == len(spans)
    for i, (which, how) in enumerate(zip(choice, strength, strict=True)):
        name = list(spans)[which]
        assert_same(name, result[i], torchvision_result(images[i], name, float(how)))


def test_trivial_augment_applies_what_is_drawn():
    images, spans = pictures(40), policy.trivial_spans()
    drawn = policy.draw(40, spans, torch.Generator().manual_seed(2))
    result = policy.trivial_augment(images, torch.Generator().manual_seed(2))
    assert torch.equal(result, policy.apply(images, list(spans), *drawn))


def test_rand_augment_applies_two_draws_in_a_row_at_level_nine():
    images, spans = pictures(40), policy.rand_spans(32, 32)
    generator, expected = torch.Generator().manual_seed(2), images
    for _ in range(2):
        expected = policy.apply(expected, list(spans), *policy.draw(40, spans, generator, 9))
    assert torch.equal(policy.rand_augment(images, torch.Generator().manual_seed(2)), expected)
    assert torch.equal(policy.rand_augment(images, generator, operations=0), images)


def test_each_image_draws_its_own_pair_chances_and_signs():
    count, spans = 100_000, policy.auto_spans(32, 32)
    names = list(spans)
    choices, strengths = policy.draw_pairs(count, spans, torch.Generator().manual_seed(0))
    for half in (0, 1):
        expected = dict.fromkeys(names, 0.0)
        for pair in policy.CIFAR10_POLICY:
            name, chance, _ = pair[half]
            expected[name] += chance / 25
        expected["identity"] = 1 - sum(expected.values())
        drawn = torch.bincount(choices[:, half], minlength=len(names)) / count
        assert drawn.tolist() == pytest.approx([expected[name] for name in names], abs=0.006)
    far = strengths[choices[:, 1] == names.index("translate_y"), 1]
    assert far.abs().unique().tolist() == pytest.approx([150 / 331 * 32])  # level 9 in both pairs that end so
    assert (far < 0).float().mean() == pytest.approx(0.5, abs=0.03)
    both = (choices != names.index("identity")).all(1)  # the halves of a pair come together
    assert (choices[both & (choices[:, 0] == names.index("rotate")), 1] == names.index("translate_x")).all()


def test_auto_augment_applies_both_halves_in_order():
    images, spans = pictures(60), policy.auto_spans(32, 32)
    choices, strengths = policy.draw_pairs(60, spans, torch.Generator().manual_seed(3))
    result = policy.auto_augment(images, torch.Generator().manual_seed(3))
    first = policy.apply(images, list(spans), choices[:, 0], strengths[:, 0])
    assert torch.equal(result, policy.apply(first, list(spans), choices[:, 1], strengths[:, 1]))
    idle = (choices == list(spans).index("identity")).all(1)
    assert idle.any()
    assert torch.equal(result[idle], images[idle])
