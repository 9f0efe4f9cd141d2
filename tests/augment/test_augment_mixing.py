"""mixup and CutMix: what happens to the pixels happens to the targets."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from resfit.augment import mix, mixing
from resfit.recipe import AugmentConfig

BOTH = {"mixup": 0.4, "cutmix": 1.0}


def batch(count: int = 6, height: int = 8, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose k-th channel is 1 for class k: their mean over pixels is the target."""
    targets = torch.eye(count)
    return targets[:, :, None, None].expand(-1, -1, height, width).contiguous(), targets


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("on", [{"mixup": 0.4}, {"cutmix": 1.0}, BOTH, {"ricap": 0.3}], ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_targets_are_mixed_as_the_pixels_are(on, seed):
    images, targets = batch()
    before = images.clone(), targets.clone()
    mixed, soft = mix(images, targets, AugmentConfig(**on), seeded(seed))
    torch.testing.assert_close(mixed.mean((2, 3)), soft)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert mixed.shape == images.shape
    assert (mixed.dtype, soft.dtype) == (images.dtype, targets.dtype)
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


def test_same_seed_same_batch_and_other_seed_another():
    images, targets = batch()
    for on in (BOTH, {"ricap": 1.0}):
        first, again, other = (mix(images, targets, AugmentConfig(**on), seeded(s))[0] for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_nothing_is_mixed_without_an_alpha():
    images, targets = batch()
    generator = seeded(0)
    state = generator.get_state()
    assert mix(images, targets, AugmentConfig(), generator) == (images, targets)
    assert torch.equal(generator.get_state(), state)


def test_mixup_is_even_over_the_image_and_cutmix_takes_whole_pixels():
    images, targets = batch()
    for seed in range(10):
        even, _ = mix(images, targets, AugmentConfig(mixup=1.0), seeded(seed))
        assert torch.equal(even, even[:, :, :1, :1].expand_as(even))
        whole, _ = mix(images, targets, AugmentConfig(cutmix=1.0), seeded(seed))
        assert set(whole.unique().tolist()) <= {0.0, 1.0}


def test_one_share_serves_the_whole_batch():
    images, targets = batch()
    _, soft = mix(images, targets, AugmentConfig(mixup=1.0), seeded(3))
    own = soft.diagonal()
    own = own[own < 1]
    assert len(own) >= 4
    assert torch.equal(own, own[:1].expand_as(own))


def test_with_both_on_each_batch_takes_one_of_them_at_an_equal_chance():
    images, targets = batch(8, 4, 4)
    generator = seeded(0)
    fractional = 0
    for _ in range(400):
        mixed, _ = mix(images, targets, AugmentConfig(mixup=50.0, cutmix=1.0), generator)
        fractional += int(((mixed > 0) & (mixed < 1)).any())
    assert fractional == pytest.approx(200, abs=40)


@pytest.mark.parametrize(("cy", "cx", "cut"), [(5, 7, 0.5), (0, 0, 0.5), (9, 15, 0.9), (4, 4, 1.0), (3, 3, 0.0)])
def test_the_box_is_cut_off_at_the_edges(cy, cx, cut):
    weight = mixing.outside_box(10, 16, torch.tensor(cy), torch.tensor(cx), torch.tensor(cut, dtype=torch.float64))
    expected = torch.ones(10, 16, dtype=torch.float64)
    half_height, half_width = int(10 * cut) // 2, int(16 * cut) // 2
    top, left = max(cy - half_height, 0), max(cx - half_width, 0)
    expected[top : cy + half_height, left : cx + half_width] = 0
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 20.0])
def test_ricap_shows_four_crops_and_weighs_targets_by_their_areas(alpha):
    """Pixels that say which image and which place they come from."""
    count, height, width = 5, 6, 9
    places = torch.arange(count * height * width, dtype=torch.float64).view(count, 1, height, width)
    here = torch.arange(height * width).view(height, width)
    for seed in range(30):
        generator = seeded(seed)
        partners = [torch.randperm(count, generator=generator) for _ in range(4)]
        patch, _, area = mixing.patch_map(height, width, alpha, generator)
        mixed, soft = mix(places, torch.eye(count), AugmentConfig(ricap=alpha), seeded(seed))
        image, place = mixed[:, 0].long() // (height * width), mixed[:, 0].long() % (height * width)
        for k in range(4):
            within = patch == k
            assert float(area[k]) == pytest.approx(float(within.double().mean()))
            for n in range(count):
                assert (image[n][within] == partners[k][n]).all()
                down, right = (place[n] // width - here // width)[within], (place[n] % width - here % width)[within]
                assert len(down.unique()) == len(right.unique()) == int(within.any())  # moved as a whole
        for n in range(count):
            torch.testing.assert_close(soft[n], torch.bincount(image[n].flatten(), minlength=count) / here.numel())


def test_ricap_cuts_its_patches_from_anywhere():
    """At this alpha the point is the middle, and each patch of 4 x 4 has five places along each side."""
    generator = seeded(0)
    rows, columns = (torch.zeros(4, 5, dtype=torch.int64) for _ in range(2))
    for _ in range(1000):
        patch, source, _ = mixing.patch_map(8, 8, 1e5, generator)
        for k in range(4):
            first = int(source[patch == k].min())
            rows[k, first // 8] += 1
            columns[k, first % 8] += 1
    assert ((rows > 140) & (rows < 260)).all()
    assert ((columns > 140) & (columns < 260)).all()


def test_ricap_keeps_the_memory_layout():
    images, targets = batch()
    wanted = images.contiguous(memory_format=torch.channels_last)
    mixed, _ = mix(wanted, targets, AugmentConfig(ricap=0.3), seeded(0))
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed, mix(images, targets, AugmentConfig(ricap=0.3), seeded(0))[0])


def test_cutmix_shares_are_exact_areas_and_its_boxes_go_everywhere():
    generator = seeded(0)
    drawn = [mixing.cutmix_weight(8, 8, 1.0, generator) for _ in range(500)]
    for weight, share in drawn:
        assert float(share) == float((weight == 1).sum()) / 64
    covered = torch.stack([weight for weight, _ in drawn]) == 0
    assert covered.any(0).all()


@pytest.mark.parametrize("alpha", [0.02, 0.2, 1.0, 3.0, 100.0])
def test_shares_follow_the_beta_distribution(alpha):
    generator = seeded(0)
    drawn = torch.stack([mixing.draw_beta(alpha, generator) for _ in range(3000)])
    # At small alpha much of the distribution is nearer to 1 than a float64 can be: compare where it can be told.
    drawn = drawn.clamp(1e-9, 1 - 1e-9)
    expected = stats.beta(alpha, alpha)
    for place in (1e-6, 0.01, 0.1, 0.3, 0.45, 0.5, 0.55, 0.7, 0.9, 0.99, 1 - 1e-6):
        assert float((drawn < place).double().mean()) == pytest.approx(expected.cdf(place), abs=0.03)
    if alpha >= 0.2:
        assert stats.kstest(drawn.numpy(), expected.cdf).pvalue > 1e-3
