"""What a teacher's outputs hold beyond the label: how soft they are, and how they rank the others.

Shape letters: N examples, K classes.
"""

from __future__ import annotations

import math

import numpy as np

from lsexp.analysis._inputs import array, below_max, labelled
from lsexp.analysis.calibration import softmax
from lsexp.analysis.collapse import effective_smoothing


def gamma(logits_NK: np.ndarray, labels_N: np.ndarray, temperature: float = 1.0) -> float:
    """Effective smoothing of a teacher at a temperature: the x axis of the paper's Figure 5.

    K / (K - 1) times the mean probability that softmax(logits / T) has not on the label (section 4
    of the paper, over its training set). It is the eps whose smoothed labels, eps / K to each
    class, have as much there, so that teachers of another T and of another eps are compared.

    Args:
        logits_NK: any finite ones; -inf is a class of probability 0. Two classes or more.
        labels_N: class indices.
        temperature: T, finite and above 0.

    Returns:
        A number in 0..K / (K - 1): 0 for certain and right, 1 for uniform probabilities, more for
        worse than uniform.

    Raises:
        ValueError: a temperature that is not finite and above 0, one class, or as `nll`.

    >>> ideal = np.log([[0.925, 0.025, 0.025, 0.025]])
    >>> round(gamma(ideal, np.array([0])), 9), round(gamma(ideal, np.array([0]), 1e9), 6)
    (0.1, 1.0)
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and above 0, not {temperature}")
    logits_NK, labels_N = labelled(logits_NK, labels_N, "logits")
    with np.errstate(over="ignore"):  # -inf is a class of probability 0
        scaled_NK = below_max(logits_NK) / temperature
    return effective_smoothing(softmax(scaled_NK), labels_N)


def wrong_class_agreement(
    logits_NK: np.ndarray, others_NK: np.ndarray, labels_N: np.ndarray
) -> float:
    """How alike two networks rank the K - 1 wrong classes of an example: mean of Spearman's rho.

    1 where they agree on every example, about 0 where they have nothing in common. The same at any
    temperature; a teacher that has lost which wrong class is like which cannot teach it. Equal
    logits share the mean of their ranks; where all are equal there is no order, and rho counts as
    0.

    Args:
        logits_NK: of one network; any but NaN, three classes or more.
        others_NK: of the other, for the same examples.
        labels_N: class indices.

    Returns:
        A number in -1..1.

    Raises:
        ValueError: fewer than three classes, which leave nothing to rank, shapes that differ, a
            logit that is NaN, no examples, other than one label for each, or a label that is no
            class.

    >>> a = np.array([[9.0, 3.0, 2.0, 1.0]])
    >>> wrong_class_agreement(a, a, np.array([0])), wrong_class_agreement(a, -a, np.array([0]))
    (1.0, -1.0)
    """
    from scipy.stats import rankdata  # a second, which other commands have no use for

    logits_NK, labels_N = labelled(logits_NK, labels_N, "logits")
    others_NK = array(others_NK)
    if others_NK.shape != logits_NK.shape:
        raise ValueError(f"logits must be of one shape, not {logits_NK.shape}, {others_NK.shape}")
    if np.isnan(logits_NK).any() or np.isnan(others_NK).any():
        raise ValueError("logits that are not finite: leave diverged runs out first")
    num_classes = logits_NK.shape[1]
    if num_classes < 3:
        raise ValueError("two classes: one is wrong, and there is nothing to rank")
    wrong_NK = np.arange(num_classes) != labels_N[:, None]
    count = num_classes - 1
    ranks = [
        rankdata(part[wrong_NK].reshape(-1, count), axis=1) - num_classes / 2
        for part in (logits_NK, others_NK)
    ]
    # Without ties rho is 1 - 6 sum d^2 / (n (n^2 - 1)).
    squares_N = ((ranks[0] - ranks[1]) ** 2).sum(1)
    whole = count * (count**2 - 1) / 12
    spread_2N = np.stack([(rank_NK**2).sum(1) for rank_NK in ranks])
    tied_N = (spread_2N < whole).any(axis=0)
    both_N = np.sqrt(spread_2N.prod(axis=0)[tied_N])
    rho_N = (ranks[0] * ranks[1]).sum(1)[tied_N] / np.where(both_N > 0, both_N, 1)
    squares_N[tied_N] = 2 * whole * (1 - rho_N)
    return float(1 - 6 * squares_N.mean() / (count * (count**2 - 1)))
