"""Selective classification: how well a score tells which predictions to keep.

Risk-coverage curves and their area (Geifman and El-Yaniv 2017, arXiv 1705.08500; Geifman, Uziel and
El-Yaniv 2019, arXiv 1805.08206). Label smoothing makes the largest softmax probability a worse
score, which normalising the logits repairs (Xia et al. 2025, arXiv 2403.14715): ECE, blind to
order, shows neither.
Shape letters: N examples, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lsexp.analysis._inputs import array, below_max, labelled

# Norms to choose from: those of Cattelan and Silva's public code but for its 0, which normalises by
# nothing.
NORMS = tuple(range(1, 10))


class RiskCoverage(NamedTuple):
    """What is wrong among the n best, n = 1..N: fractions, float64 [N] each."""

    coverage: np.ndarray
    risk: np.ndarray


def max_probability_score(logits_NK: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of the largest softmax probability p: ranks as p does.

    1. p itself is 1.0 in float64 from a lead of some 37 on, in float32 of 17: confident networks
       would tie on many examples. This is computed from logits, and goes on growing.
    2. With two classes it is the difference of the logits. With more it may be negative.

    Args:
        logits_NK: finite, two classes or more.

    Returns:
        float64 [N].

    Raises:
        ValueError: not two-dimensional, one class, or a logit that is not finite.

    p = 3/4, and a p that rounds to 1:

    >>> max_probability_score(np.array([[np.log(6), 0.0, 0.0], [1000.0, 0.0, 0.0]])).round(6)
    array([  1.098612, 999.306853])
    """
    below_NK = below_max(_checked(logits_NK))
    np.put_along_axis(below_NK, below_NK.argmax(axis=1)[:, None], -np.inf, axis=1)
    second_N = below_NK.max(axis=1)
    return -second_N - np.log(np.exp(below_NK - second_N[:, None]).sum(axis=1))


def normalised_score(logits_NK: np.ndarray, p: float) -> np.ndarray:
    """MaxLogit-pNorm: max_k z_k / ||z||_p of centred logits z (Cattelan and Silva, 2305.15508).

    What Xia et al. repair smoothed networks with.

    1. z is the logits less their mean over classes: softmax does not see that mean, a norm does.
       Xia et al. leave it optional.
    2. It does not change when all logits of an example are multiplied: only how they lie counts.
    3. With two classes z is (a, -a), and every example has the score 2 ** (-1 / p): no score at
       all. `aurc` is then the error.
    4. An example with equal logits has 0, less than any other can have.

    Args:
        logits_NK: finite, two classes or more.
        p: of the norm, at least 1: one of `NORMS`, chosen on validation data by `choose_p`.

    Returns:
        float64 [N], 0..1.

    Raises:
        ValueError: p below 1, or as `max_probability_score`.

    Centred (4, -2, -2): 4 / 8 and 4 / sqrt 24.

    >>> normalised_score(np.array([[7.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), 1)
    array([0.5, 0. ])
    >>> normalised_score(np.array([[7.0, 1.0, 1.0]]), 2).round(6)
    array([0.816497])
    """
    if not p >= 1:
        raise ValueError(f"p must be at least 1, not {p}")
    # Less the largest first: equal logits give 0 without rounding, and two classes exactly (a, -a).
    below_NK = below_max(_checked(logits_NK))
    centred_NK = below_NK - below_NK.mean(axis=1, keepdims=True)
    largest_N1 = np.abs(centred_NK).max(axis=1, keepdims=True)
    # In units of the largest no power overflows; an example of zeros stays one.
    unit_NK = centred_NK / np.where(largest_N1 > 0, largest_N1, 1)
    norm_N = (np.abs(unit_NK) ** p).sum(axis=1) ** (1 / p)
    return unit_NK.max(axis=1) / np.where(norm_N > 0, norm_N, 1)


def risk_coverage(score_N: np.ndarray, correct_N: np.ndarray) -> RiskCoverage:
    """The error among the n examples of highest score against n / N, n = 1..N.

    1. The order among equal scores means nothing: the risk is its mean over all orders, exactly.
       A score that is the same for all has the error at every coverage.
    2. At low coverage it jumps: the first point is 0 or 1.

    Args:
        score_N: higher is surer; any scale.
        correct_N: whether the prediction is right, bool or 0 and 1.

    Raises:
        ValueError: lengths differ, no examples, or a score that is NaN.

    The best is right; of the two that follow together one is.

    >>> found = risk_coverage(np.array([3.0, 2.0, 2.0, 1.0]), np.array([1, 0, 1, 0]))
    >>> found.coverage, found.risk.round(6)
    (array([0.25, 0.5 , 0.75, 1.  ]), array([0.      , 0.25    , 0.333333, 0.5     ]))
    """
    score_N, correct_N = array(score_N, np.float64), array(correct_N, np.float64)
    if score_N.shape != correct_N.shape or score_N.size == 0:
        raise ValueError(f"{score_N.shape} scores for {correct_N.shape} examples")
    if np.isnan(score_N).any():
        raise ValueError("scores that are NaN")
    _, group_N, size_G = np.unique(-score_N, return_inverse=True, return_counts=True)
    wrong_G = np.bincount(group_N, weights=1 - correct_N)
    kept_N = np.arange(1, len(score_N) + 1)
    wrong_N = np.cumsum(np.repeat(wrong_G / size_G, size_G))
    return RiskCoverage(coverage=kept_N / len(score_N), risk=wrong_N / kept_N)


def aurc(score_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean over n = 1..N of the error among the n best.

    1. Lower is better. A score that knows nothing has the error as its area, and no score has less
       than `aurc(correct_N, correct_N)`.
    2. A better accuracy lowers it, whatever the score: see `excess_aurc`.
    3. The surest examples count most: a mistake at rank r adds (1/r + ... + 1/N) / N.
    4. Papers print it times 100 or times 1,000, and some take trapezia: this is a plain mean.

    Args:
        score_N: higher is surer; any scale.
        correct_N: whether the prediction is right, bool or 0 and 1.

    Returns:
        A fraction in 0..1.

    Raises:
        ValueError: as `risk_coverage`.

    >>> round(aurc(np.array([3.0, 2.0, 1.0]), np.array([1, 0, 1])), 6)
    0.277778
    """
    return float(risk_coverage(score_N, correct_N).risk.mean())


def excess_aurc(score_N: np.ndarray, correct_N: np.ndarray) -> float:
    """`aurc` less that of a score that puts all mistakes last, which accuracy alone decides.

    E-AURC of Geifman, Uziel and El-Yaniv 2019, who take r + (1 - r) log(1 - r) for the latter,
    its limit for large N at error r; here it is exact.

    Args:
        score_N: higher is surer; any scale.
        correct_N: whether the prediction is right, bool or 0 and 1.

    Returns:
        A fraction, at least 0; 0 for a perfect order.

    Raises:
        ValueError: as `risk_coverage`.

    Mistakes last: risks 0, 0, 1/3 have the mean 1/9.

    >>> round(excess_aurc(np.array([3.0, 2.0, 1.0]), np.array([1, 0, 1])) + 1 / 9, 6)
    0.277778
    """
    return aurc(score_N, correct_N) - aurc(correct_N, correct_N)


def choose_p(logits_NK: np.ndarray, labels_N: np.ndarray) -> int:
    """The norm of `NORMS` whose `normalised_score` has the least `aurc` on these examples.

    1. On validation data: the least of nine is too low where it was chosen.
    2. Of equal ones the smallest: all right, all wrong and two classes give 1.

    Args:
        logits_NK: finite, two classes or more.
        labels_N: class indices.

    Returns:
        A p of `NORMS`, 1..9.

    Raises:
        ValueError: as `normalised_score`, no examples, other than one label for each, or a label
            that is no class.

    >>> logits = np.array([[7.0, 1.0, 1.0], [4.0, 3.0, -1.0]])
    >>> choose_p(logits, np.array([0, 0]))
    1
    """
    logits_NK, labels_N = labelled(logits_NK, labels_N, "logits")
    correct_N = logits_NK.argmax(axis=1) == labels_N
    return min(NORMS, key=lambda p: aurc(normalised_score(logits_NK, p), correct_N))


def _checked(logits_NK: np.ndarray) -> np.ndarray:
    logits_NK = array(logits_NK, dtype=np.float64)
    if logits_NK.ndim != 2 or logits_NK.shape[1] < 2:
        raise ValueError(f"logits must be [N, K] with two classes or more, not {logits_NK.shape}")
    if not np.isfinite(logits_NK).all():
        raise ValueError("logits that are not finite: leave diverged runs out first")
    return logits_NK
