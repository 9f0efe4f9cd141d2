"""Easy images are left out at random, and what stays of them weighs more: the gradient's expectation stays."""

from __future__ import annotations

import pytest
import torch

from resfit.skipping import EasyImages

CPU = torch.device("cpu")


def skipper(share: float = 0.4, count: int = 2000) -> tuple[EasyImages, torch.Tensor]:
    """Every second image is easy (loss 0.1), the others are not (loss 2)."""
    easy = EasyImages(count, share, CPU)
    losses = torch.where(torch.arange(count) % 2 == 0, 0.1, 2.0)
    easy.weighted_mean(losses, torch.arange(count))
    return easy, losses


def test_a_share_of_the_easy_images_is_left_out_and_no_other():
    easy, _ = skipper()
    order = torch.randperm(2000)
    kept = easy.keep(order, torch.Generator().manual_seed(0))
    assert (kept % 2 == 1).sum() == 1000
    assert (kept % 2 == 0).sum().item() == pytest.approx(600, abs=50)
    assert kept.tolist() == [n for n in order.tolist() if n in set(kept.tolist())]


def test_what_stays_weighs_so_much_more_that_the_expectation_stays():
    easy, losses = skipper()
    generator, sums = torch.Generator().manual_seed(0), []
    for _ in range(50):
        kept = easy.keep(torch.arange(2000), generator)
        sums.append((losses * easy.weights)[kept].sum())
    assert torch.stack(sums).mean().item() == pytest.approx(losses.sum().item(), rel=0.01)


def test_the_mean_is_weighted_and_gradients_follow_it():
    easy, _ = skipper(share=0.5)
    easy.keep(torch.arange(2000), torch.Generator().manual_seed(0))
    losses = torch.tensor([1.0, 4.0], requires_grad=True)
    mean = easy.weighted_mean(losses, torch.tensor([0, 1]))  # weights 2 and 1
    mean.backward()
    assert mean.item() == pytest.approx(2.0)
    assert losses.grad.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_images_without_a_loss_stay_and_weigh_one():
    easy = EasyImages(100, 0.9, CPU)
    assert len(easy.keep(torch.arange(100), torch.Generator().manual_seed(0))) == 100
    assert easy.weights.tolist() == [1.0] * 100


def test_keeping_all_makes_all_weigh_one():
    easy, _ = skipper()
    easy.keep(torch.arange(2000), torch.Generator().manual_seed(0))
    easy.keep_all()
    assert easy.weights.tolist() == [1.0] * 2000
