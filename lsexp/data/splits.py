"""Train and val by index: stratified, drawn by `data.split_seed`.

The paper (A.1, A.2) holds 10,000 of CIFAR's 50,000 training images out; a fifth of the training
images, at most 10,000, gives that, MNIST's 50,000 / 10,000, and something sensible elsewhere.
The test set is not split: it is never trained, tuned or selected on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lsexp.config import DataConfig
from lsexp.data.canonical import Dataset
from lsexp.errors import UserError

LARGEST_VAL = 10_000


class Splits(NamedTuple):
    """Indices into the canonical training images, int64, ascending; val may be empty."""

    train: np.ndarray
    val: np.ndarray


def stratified_counts(available: np.ndarray, total: int) -> np.ndarray:
    """Share `total` among classes in proportion to what each has (largest remainders).

    Args:
        available: examples of each class, int [K].
        total: at most their sum.

    >>> stratified_counts(np.array([50, 30, 20]), 10)
    array([5, 3, 2])
    >>> stratified_counts(np.array([5, 5, 5]), 4)
    array([2, 1, 1])
    """
    exact = available * total / max(available.sum(), 1)
    counts = np.floor(exact).astype(np.int64)
    for k in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[k] += 1
    return counts


def draw_splits(dataset: Dataset, config: DataConfig) -> Splits:
    """Split the training images as `config.split`, `split_seed` and `train_size` say.

    Smaller train sizes are subsets of larger ones, and val does not depend on the size.

    Raises:
        UserError: `data.train_size` is more than there is.
    """
    labels = np.asarray(dataset.arrays.train_labels)
    # RandomState, not default_rng: NumPy promises that its stream never changes.
    rng = np.random.RandomState(config.split_seed)
    by_class = [rng.permutation(np.flatnonzero(labels == k)) for k in range(dataset.num_classes)]
    counts = np.array([len(indices) for indices in by_class])

    num_val = 0 if config.split == "full" else min(LARGEST_VAL, round(len(labels) / 5))
    val_counts = stratified_counts(counts, num_val)
    num_train = len(labels) - num_val if config.train_size is None else config.train_size
    if num_train > len(labels) - num_val:
        raise UserError(
            f"data.train_size={num_train}: must be at most {len(labels) - num_val}, the training "
            f"images of {dataset.name} with data.split={config.split}"
        )
    train_counts = stratified_counts(counts - val_counts, num_train)
    pairs = list(zip(by_class, val_counts, train_counts, strict=True))
    val = [indices[:held] for indices, held, _ in pairs]
    train = [indices[held : held + used] for indices, held, used in pairs]
    return Splits(np.sort(np.concatenate(train)), np.sort(np.concatenate(val)))
