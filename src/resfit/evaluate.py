"""Evaluation: compute logits of images, with test-time augmentation (TTA), and the scores stored in a record.

Shapes: N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.distributed import all_gather_rows, shard
from resfit.record import Calibrated, ClassScore, ConfidenceBin, Metrics

TTA = Literal["none", "flip", "flip+shift"]

_TEMPERATURES = (0.01, 100.0)
_MOST_CONFUSED = 200  # classes of a confusion matrix: a larger one would fill memory, record and page


@torch.no_grad()
def predict_logits(
    net: nn.Module,
    images: Tensor,
    normalize: Callable[[Tensor], Tensor],
    *,
    tta: TTA = "none",
    tta_share: float = 1.0,
    batch_size: int = 500,
) -> tuple[Tensor, Tensor | None]:
    """Return logits of uint8 images [N, C, H, W], plain and averaged over views: float32 [N, K] on the CPU.

    The averaged logits are None without TTA. `normalize` converts a uint8 batch on the network's device to network
    inputs. Only the fraction `tta_share` of the images with the lowest confidence is augmented; the others keep their
    plain logits. The network's training mode is restored. In a distributed run each process evaluates its shard, and
    all return the logits of all images.
    """
    training, device = net.training, next((p.device for p in net.parameters()), images.device)
    net.eval()
    try:
        batches = images[shard(len(images))].split(batch_size)  # kept on the host: they may not fit on the GPU
        plain = all_gather_rows(torch.cat([net(normalize(batch.to(device))).float() for batch in batches]), len(images))
        averaged = plain.clone()
        if tta != "none":
            unsure = _least_sure(plain, tta_share).to(images.device)
            batches = unsure[shard(len(unsure))].split(batch_size)
            means = [_mean_of_views(net, normalize(images[n].to(device)), plain[n], tta) for n in batches]
            averaged[unsure] = all_gather_rows(torch.cat(means), len(unsure))
    finally:
        net.train(training)
    return plain.cpu(), None if tta == "none" else averaged.cpu()


def _least_sure(logits: Tensor, share: float) -> Tensor:
    """Return the sorted indices of the fraction `share` of images whose highest probability is lowest."""
    count = math.ceil(share * len(logits))
    return logits.softmax(1).amax(1).topk(count, largest=False).indices.sort().values


def _mean_of_views(net: nn.Module, images: Tensor, plain: Tensor, tta: TTA) -> Tensor:
    """Return the weighted mean of `plain`, the logits of a normalized batch, and the logits of its other views."""
    (own_weight, _), *views = _views(images, tta)
    return sum((weight * net(view).float() for weight, view in views), own_weight * plain)


def _views(images: Tensor, tta: TTA) -> Iterator[tuple[float, Tensor]]:
    """Yield weighted views of a batch; the first is the batch itself.

    flip: the batch and its mirror image. flip+shift: these two at half the weight, and the same for the batch shifted
    by one pixel down-right and up-left (Jordan 2024, airbench).
    """
    size, shifted = images.shape[-1], tta == "flip+shift"
    for view in (images, images.flip(-1)):
        yield (0.25 if shifted else 0.5), view
    if shifted:
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        for start in (0, 2):
            moved = padded[:, :, start : start + size, start : start + size]
            for view in (moved, moved.flip(-1)):
                yield 0.125, view


def score(
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    logits_tta: Tensor | None = None,
    temperature: float | None = None,
    bins: int = 15,
) -> Metrics:
    """Return all scores of logits [N, K] against labels [N]. The loss is the mean cross-entropy, in nats.

    With a `temperature`, fitted on other images, also include the calibrated loss and calibration error.
    """
    labels, predicted = labels.cpu(), logits.argmax(1)
    reliability = _reliability(logits, labels, bins)
    return Metrics(
        accuracy=accuracy(logits, labels),
        accuracy_tta=None if logits_tta is None else accuracy(logits_tta, labels),
        loss=F.cross_entropy(logits, labels).item(),
        ece=_calibration_error(reliability),
        per_class=tuple(_class_scores(predicted, labels, classes)),
        confusion=_confusion(predicted, labels, len(classes)) if len(classes) <= _MOST_CONFUSED else (),
        reliability=tuple(reliability),
        calibrated=None if temperature is None else _calibrated(logits, labels, temperature, bins),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return the temperature: logits [N, K] / temperature before the softmax are calibrated (Guo et al. 2017).

    None where no temperature from 0.01 to 100 is best, as on a few images of many classes.

    It minimizes the cross-entropy against labels [N] of images that the network was not trained on. The labels are
    smoothed by the rule of succession (Platt 1999); otherwise the best temperature for all-correct predictions would
    be 0.
    """
    from scipy.optimize import minimize_scalar

    (count, classes), logits = logits.shape, logits.double()
    smoothing = classes / (classes - 1) / (count + 2)
    low, high = map(math.log, _TEMPERATURES)
    found = minimize_scalar(
        lambda log: F.cross_entropy(logits / math.exp(log), labels.cpu(), label_smoothing=smoothing).item(),
        bounds=(low, high),
        method="bounded",
    )
    inside = low + 0.01 < found.x < high - 0.01
    return math.exp(found.x) if inside else None


def _calibrated(logits: Tensor, labels: Tensor, temperature: float, bins: int) -> Calibrated:
    logits = logits / temperature
    ece = _calibration_error(_reliability(logits, labels, bins))
    return Calibrated(temperature=temperature, loss=F.cross_entropy(logits, labels).item(), ece=ece)


def _calibration_error(reliability: Sequence[ConfidenceBin]) -> float:
    """Return the expected calibration error: the mean |accuracy - confidence|, weighted by images (Guo et al. 2017)."""
    distances = sum(b.count * abs(b.accuracy - b.confidence) for b in reliability)
    return distances / sum(b.count for b in reliability)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of images whose largest logit, of [N, K], is that of their label, int64 [N]."""
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def _confusion(predicted: Tensor, labels: Tensor, count: int) -> tuple[tuple[int, ...], ...]:
    """Return the confusion matrix: rows are labels, columns predictions."""
    flat = torch.bincount(labels * count + predicted, minlength=count * count)
    return tuple(tuple(row) for row in flat.view(count, count).tolist())


def _class_scores(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> Iterator[ClassScore]:
    """Yield precision, recall and F1 of every class; 0 for classes without predictions or images."""
    found = (labels[predicted == labels], predicted, labels)
    right, taken, present = (torch.bincount(each, minlength=len(classes)).tolist() for each in found)
    for name, hits, n_taken, n_present in zip(classes, right, taken, present, strict=True):
        yield ClassScore(
            name=name,
            precision=hits / max(n_taken, 1),
            recall=hits / max(n_present, 1),
            f1=2 * hits / max(n_taken + n_present, 1),
            support=n_present,
        )


def _reliability(logits: Tensor, labels: Tensor, bins: int) -> list[ConfidenceBin]:
    """Return mean confidence and accuracy of equal-width confidence bins, empty bins omitted (Guo et al. 2017)."""
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=values, minlength=bins) for values in (confidence, right)]
    return [
        ConfidenceBin(confidence=(sums[0][i] / n).item(), accuracy=(sums[1][i] / n).item(), count=int(n))
        for i, n in enumerate(counts.tolist())
        if n
    ]
