"""The contract of every augmentation: pure, seeded, and shape, dtype and device kept."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

import resfit.augment
from resfit.augment import augment, colour, flip_coins, geometry, policy
from resfit.recipe import AugmentConfig

OPERATIONS = {
    "crop": partial(geometry.random_crop, padding=2, mode="zero"),
    "crop-reflect": partial(geometry.random_crop, padding=2, mode="reflect"),
    "flip": geometry.random_flip,
    "cutout": partial(geometry.random_cutout, side=5),
    "rotate": partial(geometry.random_rotate, degrees=20),
    "translate": partial(geometry.random_translate, fraction=0.2),
    "brightness": partial(colour.random_adjust, adjust=colour.adjust_brightness, strength=0.4),
    "contrast": partial(colour.random_adjust, adjust=colour.adjust_contrast, strength=0.4),
    "saturation": partial(colour.random_adjust, adjust=colour.adjust_saturation, strength=0.4),
    "sharpness": partial(colour.random_adjust, adjust=colour.adjust_sharpness, strength=0.4),
    "blur": partial(colour.random_blur, largest=1.0),
    "trivial": policy.trivial_augment,
    "rand": policy.rand_augment,
    "autoaugment": policy.auto_augment,
}
SWITCHES = {
    "policy-trivial": {"policy": "trivial"},
    "policy-rand": {"policy": "rand"},
    "policy-autoaugment": {"policy": "autoaugment"},
    "crop": {"crop": 4},
    "crop_mode": {"crop": 4, "crop_mode": "reflect"},
    "flip-random": {"flip": "random"},
    "flip-alternating": {"flip": "alternating"},
    "rotate": {"rotate": 15},
    "translate": {"translate": 0.1},
    "brightness": {"brightness": 0.2},
    "contrast": {"contrast": 0.2},
    "saturation": {"saturation": 0.2},
    "blur": {"blur": 1.0},
    "cutout": {"cutout": 8},
}
EVERYTHING = {
    "policy": "rand",
    "crop": 4,
    "flip": "random",
    "rotate": 15,
    "translate": 0.1,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "blur": 1.0,
    "cutout": 8,
}
FILL = torch.tensor([120, 110, 100], dtype=torch.uint8)


def pictures(count: int = 12, channels: int = 3, height: int = 20, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count + channels)
    return torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def apply_config(images: torch.Tensor, settings: dict[str, object], seed: int = 0, epoch: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coins, fill = flip_coins(torch.arange(len(images)), seed), FILL[: images.shape[1]]
    return augment(images, AugmentConfig(**settings), generator, coins=coins, epoch=epoch, fill=fill)


def as_functions():
    """Every operation and every switch as (name, function of images and a seed)."""
    for name, operation in OPERATIONS.items():
        yield pytest.param(
            lambda images, seed, operation=operation: operation(images, torch.Generator().manual_seed(seed)),
            id=f"operation-{name}",
        )
    for name, settings in {**SWITCHES, "everything": EVERYTHING}.items():
        yield pytest.param(
            lambda images, seed, settings=settings: apply_config(images, settings, seed), id=f"switch-{name}"
        )


FUNCTIONS = list(as_functions())


def test_every_switch_of_the_config_is_covered():
    fields = {field.name for field in dataclasses.fields(AugmentConfig)} - {"mixup", "cutmix", "ricap"}
    assert {key for settings in SWITCHES.values() for key in settings} == fields


def test_public_names():
    assert set(resfit.augment.__all__) == {"augment", "flip_coins", "mix"}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_contract(function, channels):
    images = pictures(channels=channels)
    before, state = images.clone(), torch.get_rng_state()
    result = function(images, 0)
    assert (result.shape, result.dtype, result.device) == (images.shape, torch.uint8, images.device)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(function(images, 0), result)
    # Not one byte of the result is the input's: who writes to it leaves the data set alone.
    result.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_seed_gives_another_tensor(function):
    images = pictures(40)
    first, second = function(images, 0), function(images, 1)
    assert not torch.equal(first, second)
    assert not torch.equal(first, images)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_memory_layout_does_not_matter(function):
    images = pictures(channels=3)
    expected = function(images, 0)
    wide = images.repeat_interleave(2, dim=3)[..., ::2]
    assert not wide.is_contiguous()
    assert torch.equal(function(wide, 0), expected)
    assert torch.equal(function(images.to(memory_format=torch.channels_last), 0), expected)
    assert torch.equal(function(images[:1].expand(12, -1, -1, -1), 0), function(images[:1].repeat(12, 1, 1, 1), 0))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_may_be_one_image(function, channels):
    images = pictures(1, channels)
    assert function(images, 3).shape == images.shape


@pytest.mark.parametrize("function", FUNCTIONS)
def test_images_may_be_tiny(function):
    images = pictures(5, 3, 5, 6)
    assert function(images, 0).shape == images.shape


def test_nothing_on_hands_the_images_back():
    images = pictures()
    assert apply_config(images, {}) is images


def test_operations_run_in_the_documented_order():
    images, generator = pictures(), torch.Generator().manual_seed(5)
    expected = policy.rand_augment(images, generator)
    expected = geometry.random_crop(expected, generator, 4, "reflect")
    expected = geometry.alternating_flip(expected, flip_coins(torch.arange(12), 5), 3)
    expected = geometry.random_rotate(expected, generator, 15)
    expected = geometry.random_translate(expected, generator, 0.1)
    for adjust in (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation):
        expected = colour.random_adjust(expected, generator, adjust, 0.2)
    expected = colour.random_blur(expected, generator, 1.0)
    expected = geometry.random_cutout(expected, generator, 8, FILL)
    settings = {**EVERYTHING, "flip": "alternating", "crop_mode": "reflect"}
    assert torch.equal(apply_config(images, settings, seed=5, epoch=3), expected)


def test_consecutive_batches_differ():
    images, generator = pictures(40), torch.Generator().manual_seed(0)
    config = AugmentConfig(crop=4, flip="random")
    arguments = {"coins": torch.zeros(40, dtype=torch.bool), "epoch": 0}
    assert not torch.equal(*(augment(images, config, generator, **arguments) for _ in range(2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [*SWITCHES.values(), EVERYTHING], ids=str)
def test_cuda_gives_what_the_cpu_gives_from_the_same_cpu_generator(settings):
    images = pictures()
    on_cpu, on_gpu = apply_config(images, settings), apply_config(images.cuda(), settings)
    assert on_gpu.is_cuda
    assert (on_gpu.cpu() == on_cpu).float().mean() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_never_waits_for_crop_flip_and_cutout():
    images, coins, fill = pictures().cuda(), torch.ones(12, dtype=torch.bool).cuda(), FILL.cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for flip in ("random", "alternating"):
            config = AugmentConfig(crop=4, flip=flip, cutout=8)
            augment(images, config, generator, coins=coins, epoch=0, fill=fill)
    finally:
        torch.cuda.set_sync_debug_mode("default")
