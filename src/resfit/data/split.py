"""Which images validate: a stratified split that a seed determines, on every platform and for good."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resfit.errors import BadInput


def val_count(val: int | float, n: int) -> int:
    """The number of validation images that `val`, a count or a fraction below 1, asks of `n` training images."""
    count = round(val * n) if val < 1 else int(val)
    if count >= n or (val > 0 and count == 0):
        raise BadInput(f"{val} takes {count} of {n} training images (data.val): give a count or fraction between")
    return count


def stratified_split(labels: Tensor, n_val: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels`, int64 [N], into (train, val), both sorted; val has `n_val` of them.

    Each class gives in proportion to its size, rounded by largest remainder. Raises BadInput where a class would keep
    no training image.
    """
    if seed < 0:
        raise BadInput(f"split_seed is {seed} (data.split_seed): give 0 or a whole number above it")
    classes = labels.numpy()
    counts = np.bincount(classes)
    quotas = _quotas(counts, n_val)
    bare = np.flatnonzero((counts > 0) & (quotas >= counts))
    if len(bare):
        raise BadInput(
            f"a split of {n_val} from {len(classes)} images leaves class {bare[0]} none to train on (data.val): "
            "give fewer, or add images"
        )
    in_val = _chosen(classes, counts, quotas, seed)
    return torch.from_numpy(np.flatnonzero(~in_val)), torch.from_numpy(np.flatnonzero(in_val))


def stratified_part(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted indices of a stratified `fraction` of `labels`, int64 [N]; raises BadInput where a class gets none."""
    classes = labels.numpy()
    counts = np.bincount(classes)
    quotas = _quotas(counts, round(fraction * len(classes)))
    if len(bare := np.flatnonzero((counts > 0) & (quotas == 0))):
        raise BadInput(f"{fraction} of {len(classes)} images has none of class {bare[0]} (data.fraction): give more")
    return torch.from_numpy(np.flatnonzero(_chosen(classes, counts, quotas, seed)))


def _chosen(classes: np.ndarray, counts: np.ndarray, quotas: np.ndarray, seed: int) -> np.ndarray:
    """Which images are drawn, bool [N], when each class of `counts` images gives as many as `quotas` says."""
    # Raw PCG64 output is the part of numpy's random numbers that is promised never to change.
    order = np.lexsort((np.random.PCG64(seed).random_raw(len(classes)), classes))  # by class, and shuffled within it
    rank = np.arange(len(classes)) - np.repeat(counts.cumsum() - counts, counts)
    chosen = np.empty(len(classes), dtype=bool)
    chosen[order] = rank < np.repeat(quotas, counts)
    return chosen


def _quotas(counts: np.ndarray, total: int) -> np.ndarray:
    """`total` shared out in proportion to `counts`; ties for the last ones go to the lower class."""
    shares, remainders = np.divmod(counts * total, max(counts.sum(), 1))
    shares[np.argsort(-remainders, kind="stable")[: total - shares.sum()]] += 1
    return shares
