"""How good and how honest probabilities are: accuracy, NLL, ECE, Brier score.

Section 3 of the paper reports ECE with 15 bins (Guo et al. 2017, arXiv 1706.04599, equation 3).
Shape letters: N examples, K classes.
"""

from __future__ import annotations

import numpy as np

BINS = 15


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities float64 [N, K], each row summing to one; any finite float32 logits.

    >>> softmax(np.array([[0.0, np.log(3.0)], [1e30, -1e30]])).tolist()
    [[0.25, 0.75], [1.0, 0.0]]
    """
    shifted = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def ece(probabilities_NK: np.ndarray, labels_N: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the mean over examples of |accuracy - confidence| of its bin.

    1. Confidence is the largest probability; `bins` bins of equal width divide 0..1.
    2. A bin holds (low, high], so that a confidence of 1 falls in the last; empty bins count 0.
    3. A perfectly calibrated model does not score 0 at finite N: the estimate is biased upward.

    Returns:
        A fraction in 0..1.

    Four examples, two bins: confidence .9 (right, wrong) and .6 (right, right) share the upper
    bin: |3/4 - .75| = 0.

    >>> p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    >>> round(ece(p, np.array([0, 1, 0, 0]), bins=2), 6)
    0.0
    >>> round(ece(p, np.array([1, 1, 0, 0]), bins=2), 6)
    0.25
    """
    confidence_N = probabilities_NK.max(axis=1)
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    bin_N = np.clip(
        np.digitize(confidence_N, np.linspace(0, 1, bins + 1), right=True) - 1, 0, bins - 1
    )
    gap_by_bin = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=bins)
    return float(np.abs(gap_by_bin).sum() / len(labels_N))


def brier(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Brier score: mean over examples of the squared distance to the one-hot label, in 0..2.

    >>> brier(np.array([[0.5, 0.5]]), np.array([0]))
    0.5
    """
    squared = (probabilities_NK**2).sum(axis=1)
    true_N = np.take_along_axis(probabilities_NK, labels_N[:, None], axis=1)[:, 0]
    return float((squared - 2 * true_N + 1).mean())


def nll(logits_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels in nats, from logits (log 0 never happens).

    >>> round(nll(np.array([[0.0, 0.0]]), np.array([1])), 6)
    0.693147
    """
    shifted = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True)
    true_N = np.take_along_axis(shifted, labels_N[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - true_N).mean())


def scores(logits_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """accuracy (fraction), nll (nats), ece (fraction, 15 bins) and brier of one split."""
    probabilities_NK = softmax(logits_NK)
    return {
        "accuracy": float((logits_NK.argmax(axis=1) == labels_N).mean()),
        "nll": nll(logits_NK, labels_N),
        "ece": ece(probabilities_NK, labels_N),
        "brier": brier(probabilities_NK, labels_N),
    }
