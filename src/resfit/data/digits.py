"""The 1,797 handwritten 8 x 8 digits that come with scikit-learn: no download needed."""

from __future__ import annotations

import torch

from resfit.data.images import Images, Source
from resfit.data.split import stratified_split

_N_TEST, _TEST_SEED = 360, 0  # fixed, so that every run is scored on the same test images


def load_digits(channels: int) -> Source:
    """Return the digits as uint8 [N, channels, 8, 8], split by class into 1,437 training and 360 test images."""
    from sklearn.datasets import load_digits as bunch

    grey, labels = map(torch.from_numpy, bunch(return_X_y=True))  # float64 [N, 64] from 0 to 16
    images = (grey * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8).repeat(1, channels, 1, 1)
    digits = Images(images=images, labels=labels.to(torch.int64))
    train, test = stratified_split(digits.labels, _N_TEST, _TEST_SEED)
    return Source(classes=tuple("0123456789"), train=digits.take(train), test=digits.take(test))
