"""Logits of labelled images, with test-time augmentation, and the scores that a record holds.

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
    """Logits of uint8 images [N, C, H, W], plain and averaged over views (None without tta): float32 [N, K] on the CPU.

    `normalize` brings a uint8 batch on the network's device to what it takes. Views are taken of the share `tta_share`
    of the images that the network is least sure of; the others keep their plain logits. The network comes back in the
    mode it was in. Of several processes each goes through its share of the images, and all get the logits of all.
    """
    training, device = net.training, next((p.device for p in net.parameters()), images.device)
    net.eval()
    try:
        batches = images[shard(len(images))].split(batch_size)  # they may be too many for a GPU
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
    """Indices, in order, of the share of images whose highest probability is lowest."""
    count = math.ceil(share * len(logits))
    return logits.softmax(1).amax(1).topk(count, largest=False).indices.sort().values


def _mean_of_views(net: nn.Module, images: Tensor, plain: Tensor, tta: TTA) -> Tensor:
    """The weighted mean of the logits of a normalized batch, which are `plain`, and of its other views."""
    (own_weight, _), *views = _views(images, tta)
    return sum((weight * net(view).float() for weight, view in views), own_weight * plain)


def _views(images: Tensor, tta: TTA) -> Iterator[tuple[float, Tensor]]:
    """Views of a batch with their weights; the first is the batch itself.

    flip: the mirror image as well. flip+shift: these two at half the weight, and the same of the batch moved by one
    pixel up-left and down-right (Jordan 2024, airbench).
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
    """All scores of logits [N, K] against labels [N]. Loss is the mean cross-entropy, in nats.

    With a `temperature` from other images, loss and calibration error with it as well.
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


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """What logits [N, K] are divided by ahead of the softmax so that confidence agrees with accuracy (Guo et al. 2017).

    It minimizes the cross-entropy with labels [N] that the network was not trained on. These are smoothed by the rule
    of succession (Platt 1999), as no finite temperature would fit where every image is right.
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
    return math.exp(found.x)


def _calibrated(logits: Tensor, labels: Tensor, temperature: float, bins: int) -> Calibrated:
    logits = logits / temperature
    ece = _calibration_error(_reliability(logits, labels, bins))
    return Calibrated(temperature=temperature, loss=F.cross_entropy(logits, labels).item(), ece=ece)


def _calibration_error(reliability: Sequence[ConfidenceBin]) -> float:
    """Mean distance of confidence and accuracy, weighted by images (Guo et al. 2017)."""
    distances = sum(b.count * abs(b.accuracy - b.confidence) for b in reliability)
    return distances / sum(b.count for b in reliability)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose label, int64 [N], has the largest of their logits [N, K]."""
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def _confusion(predicted: Tensor, labels: Tensor, count: int) -> tuple[tuple[int, ...], ...]:
    """How many images of each class (rows) were taken for each (columns)."""
    flat = torch.bincount(labels * count + predicted, minlength=count * count)
    return tuple(tuple(row) for row in flat.view(count, count).tolist())


def _class_scores(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> Iterator[ClassScore]:
    """Precision, recall and F1 of every class, 0 where nothing was predicted or there is nothing to find."""
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
    """Equal bins of confidence that hold an image (Guo et al. 2017): their mean confidence and their accuracy."""
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
