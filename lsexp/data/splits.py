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


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of `labels` in an order of which every stretch holds the classes in proportion.

    Each class is shuffled and spread evenly over the order, so that longer beginnings contain
    shorter ones.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> labels[stratified_order(labels, seed=0)]
    array([0, 1, 0, 0, 1, 0])
    """
    # RandomState, not default_rng: NumPy promises that its stream never changes.
    rng = np.random.RandomState(seed)
    places, order = [], []
    for k in range(int(labels.max()) + 1):
        members = rng.permutation(np.flatnonzero(labels == k))
        places.append((np.arange(len(members)) + 0.5) / max(len(members), 1))
        order.append(members)
    return np.concatenate(order)[np.argsort(np.concatenate(places), kind="stable")]


def draw_splits(dataset: Dataset, config: DataConfig) -> Splits:
    """Split the training images as `config.split`, `split_seed` and `train_size` say.

    Smaller train sizes are subsets of larger ones, and val does not depend on the size.

    Raises:
        UserError: `data.train_size` is more than there is, or a class has no image to train on.
    """
    labels = np.asarray(dataset.arrays.train_labels)
    order = stratified_order(labels, config.split_seed)
    num_val = 0 if config.split == "full" else min(LARGEST_VAL, round(len(labels) / 5))
    most = len(labels) - num_val
    num_train = most if config.train_size is None else config.train_size
    if num_train > most:
        raise UserError(
            f"data.train_size={num_train}: must be at most {most}, the training "
            f"images of {dataset.name} with data.split={config.split}"
        )
    val, train = order[:num_val], order[num_val : num_val + num_train]
    absent = np.setdiff1d(np.arange(dataset.num_classes), labels[train])
    if len(absent):
        raise UserError(
            f"data.train_size={num_train}: leaves no training image of class "
            f"{dataset.arrays.classes[absent[0]]} of {dataset.name}; take more, or data.split=full"
        )
    return Splits(np.sort(train), np.sort(val))
