"""Stratified train/validation split, determined by a seed and identical on all platforms and numpy versions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resfit.errors import BadInput


def val_count(val: int | float, n: int) -> int:
    """Return how many of `n` training images are for validation; `val` is a count, or a fraction below 1.

    Raises BadInput if this leaves no training image, or if `val` is above 0 and takes none.
    """
    count = round(val * n) if val < 1 else int(val)
    if count >= n or (val > 0 and count == 0):
        raise BadInput(f"{val} takes {count} of {n} training images (data.val): give one that leaves images for both")
    return count


def stratified_split(labels: Tensor, n_val: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels`, int64 [N], into (train, val), both sorted; val has `n_val` of them.

    Each class contributes in proportion to its size, rounded by largest remainder, but keeps a training image. Raises
    BadInput if that is impossible.
    """
    if seed < 0:
        raise BadInput(f"split_seed is {seed} (data.split_seed): give 0 or a whole number above it")
    classes = labels.numpy()
    counts = np.bincount(classes)
    spare = np.maximum(counts - 1, 0)
    if n_val > spare.sum():
        raise BadInput(
            f"{n_val} of {len(classes)} images for validation leave too few to train on all {(counts > 0).sum()} "
            "classes (data.val): give fewer, or add images"
        )
    quotas = np.minimum(_quotas(counts, n_val), spare)
    quotas += _quotas(spare - quotas, n_val - quotas.sum())
    in_val = _chosen(classes, counts, quotas, seed)
    return torch.from_numpy(np.flatnonzero(~in_val)), torch.from_numpy(np.flatnonzero(in_val))


def stratified_part(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Return sorted indices of a stratified `fraction` of `labels`, int64 [N]; raises BadInput if a class gets none."""
    classes = labels.numpy()
    counts = np.bincount(classes)
    quotas = _quotas(counts, round(fraction * len(classes)))
    if len(bare := np.flatnonzero((counts > 0) & (quotas == 0))):
        raise BadInput(
            f"{fraction} of {len(classes)} images includes none of class {bare[0]} (data.fraction): give more"
        )
    return torch.from_numpy(np.flatnonzero(_chosen(classes, counts, quotas, seed)))


def _chosen(classes: np.ndarray, counts: np.ndarray, quotas: np.ndarray, seed: int) -> np.ndarray:
    """Choose `quotas` images at random from each class, which has `counts` images: bool [N]."""
    # Raw PCG64 output is the part of numpy's random API that is guaranteed never to change.
    order = np.lexsort((np.random.PCG64(seed).random_raw(len(classes)), classes))  # by class, shuffled within it
    rank = np.arange(len(classes)) - np.repeat(counts.cumsum() - counts, counts)
    chosen = np.empty(len(classes), dtype=bool)
    chosen[order] = rank < np.repeat(quotas, counts)
    return chosen


def _quotas(counts: np.ndarray, total: int) -> np.ndarray:
    """Distribute `total` in proportion to `counts`, rounded by largest remainder; ties go to the lower class."""
    shares, remainders = np.divmod(counts * total, max(counts.sum(), 1))
    shares[np.argsort(-remainders, kind="stable")[: total - shares.sum()]] += 1
    return shares
