"""What a teacher's outputs hold beyond the label: how soft they are, and how they rank the others.

Shape letters: N examples, K classes.
"""

from __future__ import annotations

import numpy as np

from lsexp.analysis.calibration import softmax
from lsexp.analysis.collapse import effective_smoothing


def gamma(logits_NK: np.ndarray, labels_N: np.ndarray, temperature: float = 1.0) -> float:
    """Effective smoothing of a teacher at a temperature: `collapse.effective_smoothing`.

    >>> ideal = np.log([[0.925, 0.025, 0.025, 0.025]])
    >>> round(gamma(ideal, np.array([0])), 9), round(gamma(ideal, np.array([0]), 1e9), 6)
    (0.1, 1.0)
    """
    scaled_NK = np.asarray(logits_NK, np.float64) / temperature
    return effective_smoothing(softmax(scaled_NK), labels_N)


def wrong_class_agreement(
    logits_NK: np.ndarray, others_NK: np.ndarray, labels_N: np.ndarray
) -> float:
    """How alike two networks rank the K - 1 wrong classes of an example: mean of Spearman's rho.

    1 where they agree on every example, about 0 where they have nothing in common. The same at any
    temperature; a teacher that has lost which wrong class is like which cannot teach it.

    Raises:
        ValueError: fewer than three classes, which leave nothing to rank.

    >>> a = np.array([[9.0, 3.0, 2.0, 1.0]])
    >>> wrong_class_agreement(a, a, np.array([0])), wrong_class_agreement(a, -a, np.array([0]))
    (1.0, -1.0)
    """
    num_classes = logits_NK.shape[1]
    if num_classes < 3:
        raise ValueError("two classes: one is wrong, and there is nothing to rank")
    wrong_NK = np.arange(num_classes) != np.asarray(labels_N)[:, None]
    count = num_classes - 1
    ranks = [
        part[wrong_NK].reshape(-1, count).argsort(1).argsort(1).astype(np.float64)
        for part in (np.asarray(logits_NK), np.asarray(others_NK))
    ]
    # Without ties rho is 1 - 6 sum d^2 / (n (n^2 - 1)).
    squares_N = ((ranks[0] - ranks[1]) ** 2).sum(1)
    return float(1 - 6 * squares_N.mean() / (count * (count**2 - 1)))
