"""Scores are scikit-learn's; views are weighed; the size of a batch changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support
from torch import Tensor, nn

from resfit.evaluate import fit_temperature, predict_logits, score
from resfit.net import build
from resfit.spec import NetSpec

CLASSES = [f"class {n}" for n in range(5)]
SPEC = NetSpec.from_dict(
    {"input": {"size": 8}, "stem": {"channels": 8}, "stages": [{"blocks": 1, "channels": 8}], "num_classes": 5}
)


def random_case(*, never: int | None = None, count: int = 200) -> tuple[Tensor, Tensor]:
    """Logits [N, 5] that are right more often than by chance, and labels [N]; `never` is the class none predicts."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (count,), generator=generator)
    logits = 2 * torch.randn(count, 5, generator=generator) + 2 * F.one_hot(labels, 5)
    if never is not None:
        logits[:, never] = -15.0
    return logits, labels


def images(count: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def normalize(batch: Tensor) -> Tensor:
    return batch.float() / 255 - 0.5


@pytest.mark.parametrize("never", [None, 3])
def test_scores_are_scikit_learns(never):
    logits, labels = random_case(never=never)
    metrics, predicted = score(logits, labels, CLASSES), logits.argmax(1)
    per_class = precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0)
    ours = [[getattr(c, name) for c in metrics.per_class] for name in ("precision", "recall", "f1", "support")]
    assert metrics.accuracy == accuracy_score(labels, predicted)
    assert metrics.loss == pytest.approx(log_loss(labels, logits.double().softmax(1), labels=range(5)), rel=1e-5)
    assert [list(row) for row in metrics.confusion] == confusion_matrix(labels, predicted, labels=range(5)).tolist()
    assert ours == [pytest.approx(list(values)) for values in per_class]
    assert [c.name for c in metrics.per_class] == CLASSES
    if never is not None:
        assert metrics.per_class[never].precision == metrics.per_class[never].f1 == 0.0


def test_a_class_without_images_scores_zero_and_has_no_support():
    metrics = score(torch.eye(5)[:3] * 9, torch.arange(3), CLASSES)
    assert (metrics.per_class[4].recall, metrics.per_class[4].f1, metrics.per_class[4].support) == (0.0, 0.0, 0)
    assert metrics.accuracy == 1.0


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy(bins):
    logits, labels = random_case()
    gaps: dict[int, list[float]] = {}
    for row, label in zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        place = next(n for n in range(1, bins + 1) if confidence <= n / bins)  # bins are (low, high]
        gaps.setdefault(place, []).append((row.index(confidence) == label) - confidence)
    metrics = score(logits, labels, CLASSES, bins=bins)
    assert metrics.ece == pytest.approx(sum(abs(sum(gap)) for gap in gaps.values()) / len(labels))
    assert [b.count for b in metrics.reliability] == [len(gaps[place]) for place in sorted(gaps)]


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it():
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0]])  # confidences of 0.5 and 0.88
    metrics = score(logits, torch.tensor([0, 1]), ("a", "b"), bins=2)
    assert [b.count for b in metrics.reliability] == [1, 1]


def test_certain_and_right_is_perfectly_calibrated():
    metrics = score(torch.eye(5) * 1000, torch.arange(5), CLASSES)
    assert metrics.ece == 0.0
    assert [(b.confidence, b.accuracy, b.count) for b in metrics.reliability] == [(1.0, 1.0, 5)]


def test_augmented_accuracy_stands_beside_the_plain_one():
    logits, labels = random_case()
    assert score(logits, labels, CLASSES).accuracy_tta is None
    metrics = score(logits, labels, CLASSES, logits_tta=F.one_hot(labels, 5).float())
    assert metrics.accuracy_tta == 1.0
    assert metrics.accuracy == score(logits, labels, CLASSES).accuracy < 1.0


@pytest.mark.parametrize("tta", ["none", "flip", "flip+shift"])
def test_the_size_of_a_batch_changes_nothing(tta):
    torch.manual_seed(0)
    net = build(SPEC)
    results = [predict_logits(net, images(), normalize, tta=tta, batch_size=size) for size in (1, 7, 500)]
    for plain, averaged in results[1:]:
        torch.testing.assert_close(plain, results[0][0])
        torch.testing.assert_close(averaged, results[0][1])
    assert (results[0][1] is None) == (tta == "none")


class Corner(nn.Module):
    """Its logits are the pixels of the first channel: shows where a view has put them."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch[:, 0].flatten(1)


class Mean(nn.Module):
    """Blind to flips."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch.mean((2, 3))


def test_flipped_views_count_half_each():
    plain, averaged = predict_logits(Corner(), images(), torch.Tensor.float, tta="flip")
    mirrored = images().flip(-1)[:, 0].flatten(1).float()
    assert torch.equal(plain, images()[:, 0].flatten(1).float())
    torch.testing.assert_close(averaged, (plain + mirrored) / 2)


def test_shifted_views_count_an_eighth_each_and_move_by_one_pixel():
    (image,) = images(1)[:, 0].float()
    padded = F.pad(image[None, None], (1, 1, 1, 1), mode="reflect")[0, 0]
    views = [(0.25, image), (0.125, padded[:-2, :-2]), (0.125, padded[2:, 2:])]
    expected = sum(weight * (view + view.flip(-1)) for weight, view in views)
    _, averaged = predict_logits(Corner(), images(1), torch.Tensor.float, tta="flip+shift")
    torch.testing.assert_close(averaged, expected.flatten()[None])


def test_only_the_share_of_images_that_are_least_sure_gets_views():
    plain, averaged = predict_logits(Corner(), images(), torch.Tensor.float, tta="flip+shift")
    _, shared = predict_logits(Corner(), images(), torch.Tensor.float, tta="flip+shift", tta_share=0.25, batch_size=3)
    sure = plain.softmax(1).amax(1)
    unsure = sure <= sure.sort().values[4]  # 5 of 20
    assert (averaged != plain).any(1).all()
    torch.testing.assert_close(shared, torch.where(unsure[:, None], averaged, plain))


@pytest.mark.parametrize("tta", ["flip", "flip+shift"])
def test_weights_of_the_views_sum_to_one(tta):
    even = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
    plain, averaged = predict_logits(Corner(), even, torch.Tensor.float, tta=tta)
    torch.testing.assert_close(averaged, plain)


def test_a_network_blind_to_flips_gains_nothing_from_them():
    plain, averaged = predict_logits(Mean(), images(), torch.Tensor.float, tta="flip")
    torch.testing.assert_close(averaged, plain)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_comes_back_unchanged_in_the_mode_it_was_in(training):
    net = build(SPEC).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits, _ = predict_logits(net, images(), normalize)
    assert net.training == net.stages.training == training
    assert not logits.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_logits_are_float32_on_the_cpu_whatever_the_network_computes_in():
    logits, _ = predict_logits(Mean(), images(), lambda batch: batch.bfloat16())
    assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(true):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial((logits / true).softmax(1), 1, generator=generator).flatten()
    assert fit_temperature(logits, labels) == pytest.approx(true, rel=0.05)


def test_answers_worse_than_chance_have_no_temperature() -> None:
    logits = 10 * F.one_hot(torch.arange(7), 37).float()
    assert fit_temperature(logits, torch.arange(7) + 20) is None


def test_scores_with_a_temperature_are_those_of_cooled_logits() -> None:
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 3
    labels = (torch.arange(200) % 5).long()
    plain, cooled = score(logits, labels, "abcde"), score(logits / 2.5, labels, "abcde")
    both = score(logits, labels, "abcde", temperature=2.5)
    assert both.calibrated is not None and plain.calibrated is None
    assert (both.loss, both.ece, both.reliability) == (plain.loss, plain.ece, plain.reliability)
    found = (both.calibrated.temperature, both.calibrated.loss, both.calibrated.ece)
    assert found == pytest.approx((2.5, cooled.loss, cooled.ece))


def test_a_temperature_improves_calibration_and_changes_no_answer():
    logits, labels = random_case(count=2000)
    confident = 10 * logits
    cooled = confident / fit_temperature(confident, labels)
    before, after = (score(values, labels, CLASSES) for values in (confident, cooled))
    assert after.ece < 0.3 * before.ece
    assert after.accuracy == before.accuracy


@pytest.mark.parametrize("count", [1, 100])
def test_where_every_image_is_right_confidence_stays_below_certainty(count):
    labels = torch.arange(count) % 5
    logits = F.one_hot(labels, 5).float()
    confidence = (logits / fit_temperature(logits, labels)).softmax(1).max(1).values
    assert confidence.max() == pytest.approx(1 - 1 / (count + 2), abs=0.01)


def test_many_classes_have_scores_and_no_matrix():
    generator = torch.Generator().manual_seed(0)
    for count in (200, 201):
        logits, labels = torch.randn(500, count, generator=generator), torch.randint(0, count, (500,))
        found = score(logits, labels, [str(n) for n in range(count)])
        assert len(found.confusion) == (200 if count == 200 else 0)
        assert sum(one.support for one in found.per_class) == 500
        if found.confusion:
            assert [row[i] for i, row in enumerate(found.confusion)] == [
                round(one.recall * one.support) for one in found.per_class
            ]
