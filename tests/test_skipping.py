"""The easiest images are left out of an epoch, and come back in the next."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from resfit.skipping import EasyImages

CPU = torch.device("cpu")


def remembered(count: int = 10, share: float = 0.4) -> EasyImages:
    """Image n has the n-th lowest loss."""
    easy = EasyImages(count, share, CPU)
    sureness = torch.arange(count, 0, -1.0)
    easy.remember(torch.arange(count), torch.stack((sureness, torch.zeros(count)), 1), torch.zeros(count).long())
    return easy


def test_the_images_of_lowest_loss_are_left_out_and_the_order_stays():
    order = torch.tensor([9, 0, 8, 1, 7, 2, 6, 3, 5, 4])
    assert remembered().leave_out(order).tolist() == [9, 8, 7, 6, 5, 4]


def test_none_is_left_out_twice_in_a_row():
    easy, order = remembered(), torch.arange(10)
    easy.leave_out(order)
    assert easy.leave_out(order).tolist() == [0, 1, 2, 3, 8, 9]


def test_with_a_share_above_one_half_every_image_is_seen_every_other_time():
    easy, order = remembered(share=0.8), torch.arange(10)
    seen = [set(easy.leave_out(order).tolist()) for _ in range(2)]
    assert seen[0] | seen[1] == set(range(10))


def test_images_that_were_never_trained_on_stay_while_others_can_go():
    easy = EasyImages(10, 0.5, CPU)
    easy.remember(torch.arange(5), torch.randn(5, 3), torch.zeros(5).long())
    assert easy.leave_out(torch.arange(10)).tolist() == [5, 6, 7, 8, 9]


def test_losses_are_cross_entropies_of_the_labels():
    easy, logits, labels = EasyImages(6, 0.5, CPU), torch.randn(3, 4, dtype=torch.bfloat16), torch.tensor([3, 0, 1])
    easy.remember(torch.tensor([5, 0, 2]), logits, labels)
    expected = F.cross_entropy(logits.float(), labels, reduction="none")
    torch.testing.assert_close(easy.losses[[5, 0, 2]], expected)
    assert easy.losses[[1, 3, 4]].isinf().all()
