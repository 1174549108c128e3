"""How good and how honest probabilities are: accuracy, NLL, ECE, Brier score.

Section 3 of the paper reports ECE with 15 bins (Guo et al. 2017, arXiv 1706.04599, equation 3).
Shape letters: N examples, K classes.
"""

from __future__ import annotations

import math

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
    return ece_of(*top_label(probabilities_NK, labels_N), bins)


def ece_of(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = BINS) -> float:
    """`ece` from what `top_label` gives."""
    gap_by_bin = np.bincount(
        _bin(confidence_N, bins), weights=correct_N - confidence_N, minlength=bins
    )
    return float(np.abs(gap_by_bin).sum() / len(confidence_N))


def top_label(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest probability of each example (float) and whether that class is the label (bool).

    Of classes that tie the first counts as predicted.
    """
    return probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == labels_N


def debiased_ece(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = BINS) -> float:
    """ECE less an estimate of how much the noise of each bin's accuracy adds to it.

    A bin with gap g = accuracy - confidence and accuracy a of n examples would, drawn again, show
    a gap around g with variance a (1 - a) / n. The mean of its absolute value is that of a folded
    normal variable; what that exceeds |g| by is taken off the plug-in: 2 |g| - E|Normal(g, var)|.

    1. The idea is that of the L1 case in the code of Kumar, Liang and Ma 2019 (arXiv 1909.10155),
       here in closed form instead of 1,000 draws. Their theorem is on the squared L2 error, whose
       bias can be removed exactly; that of |g| cannot.
    2. What remains depends on the bin's true gap. In standard errors of the bin: where it is 0,
       .47 of the plug-in's .80 (2 - sqrt 2 = 59 %); where it is 1, -.07 instead of .17; where it
       is 2, -.06 instead of .02; from 3 on next to nothing, as in the plug-in. So near calibration
       read it beside `ece_floor`, and prefer differences between models of like confidence.
    3. It may be negative. It is not cut at 0, which would bring a bias back.
    4. A bin whose examples are all right or all wrong (one example is) shows no noise and is not
       corrected. Their code refuses bins of one example.
    5. What is estimated is the error of the binned confidences; miscalibration that cancels
       inside a bin stays invisible, with or without debiasing.

    Args:
        confidence_N: the largest probability of each example, 0..1.
        correct_N: whether that class is the label, bool or 0 and 1.
        bins: equal widths, (low, high] as in `ece`.

    Returns:
        A fraction, below `ece` or equal to it.

    Raises:
        ValueError: lengths differ, or no examples.

    Four of confidence .75, two right: |g| = .25 at a standard error of .25.

    >>> round(debiased_ece(np.full(4, 0.75), np.array([1, 1, 0, 0])), 6)
    0.208342
    """
    if len(confidence_N) != len(correct_N) or len(confidence_N) == 0:
        raise ValueError(f"{len(confidence_N)} confidences for {len(correct_N)} examples")
    bin_N = _bin(confidence_N, bins)
    count = np.bincount(bin_N, minlength=bins)
    right = np.bincount(bin_N, weights=correct_N, minlength=bins)
    gap = np.bincount(bin_N, weights=correct_N - np.asarray(confidence_N), minlength=bins)
    total = 0.0
    for n, r, g in zip(count.tolist(), right.tolist(), gap.tolist(), strict=True):
        # Sums over the bin's examples, not means: they need no further weight.
        deviation = math.sqrt(r * (n - r) / n) if n else 0.0
        total += 2 * abs(g) - _folded_normal_mean(g, deviation)
    return total / len(confidence_N)


def ece_floor(confidence_N: np.ndarray, bins: int = BINS) -> float:
    """The `ece` that a perfectly calibrated model with these confidences shows on average.

    1. Of N examples each is right with the probability that its confidence says. The mean of a
       bin's |right - expected| is that of a binomial variable (de Moivre 1730; Diaconis and Zabell
       1991, Statistical Science 6, 284-302), exact where the bin's confidences are equal, else
       scaled to the variance that they have. A normal approximation is 40 % too high where a bin
       expects .1 mistakes, the usual last bin of an overconfident model on few examples.
    2. It falls like 1 / sqrt N, and with confidence: floors of models with other confidences
       differ, so that two ECE near their floors say nothing about which is better calibrated.
    3. An average: about half of all calibrated models show more.

    Args:
        confidence_N: the largest probability of each example, 0..1.
        bins: equal widths, (low, high] as in `ece`.

    Returns:
        A fraction.

    Raises:
        ValueError: no examples.

    Two of confidence .5: 0, 1 or 2 are right, at |gap| .5, 0 or .5, and half of the time 1 is.

    >>> round(ece_floor(np.array([0.5, 0.5])), 6)
    0.25
    """
    confidence_N = np.asarray(confidence_N, dtype=np.float64)
    if len(confidence_N) == 0:
        raise ValueError("no confidences")
    bin_N = _bin(confidence_N, bins)
    count = np.bincount(bin_N, minlength=bins)
    wrong = np.bincount(bin_N, weights=1 - confidence_N, minlength=bins)
    variance = np.bincount(bin_N, weights=confidence_N * (1 - confidence_N), minlength=bins)
    total = 0.0
    for n, w, v in zip(count.tolist(), wrong.tolist(), variance.tolist(), strict=True):
        if v > 0:
            total += _binomial_mean_deviation(n, w / n) * math.sqrt(v / (w * (1 - w / n)))
    return total / len(confidence_N)


def _bin(confidence_N: np.ndarray, bins: int) -> np.ndarray:
    """The bin (low, high] of each confidence; 0 is of the first."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.digitize(confidence_N, edges, right=True) - 1, 0, bins - 1)


def _folded_normal_mean(mean: float, deviation: float) -> float:
    """E|x| of x ~ Normal(mean, deviation^2)."""
    if deviation == 0:
        return abs(mean)
    scaled = mean / (deviation * math.sqrt(2))
    return deviation * math.sqrt(2 / math.pi) * math.exp(-(scaled**2)) + mean * math.erf(scaled)


def _binomial_mean_deviation(n: int, p: float) -> float:
    """E|x - n p| of x ~ Binomial(n, p), 0 < p < 1: 2 k (1 - p) P(x = k), k the first above n p."""
    k = min(math.floor(n * p) + 1, n)
    log_probability = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log1p(-p)
    )
    return 2 * k * (1 - p) * math.exp(log_probability)


def brier(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Brier score: mean over examples of the squared distance to the one-hot label, in 0..2.

    >>> brier(np.array([[0.5, 0.5]]), np.array([0]))
    0.5
    """
    return float(brier_by_example(probabilities_NK, labels_N).mean())


def brier_by_example(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """What `brier` is the mean of, float64 [N]."""
    squared_N = (probabilities_NK**2).sum(axis=1)
    true_N = np.take_along_axis(probabilities_NK, labels_N[:, None], axis=1)[:, 0]
    return squared_N - 2 * true_N + 1


def nll(logits_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels in nats, from logits (log 0 never happens).

    >>> round(nll(np.array([[0.0, 0.0]]), np.array([1])), 6)
    0.693147
    """
    return float(nll_by_example(logits_NK, labels_N).mean())


def nll_by_example(logits_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """What `nll` is the mean of, in nats, float64 [N]."""
    shifted = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True)
    true_N = np.take_along_axis(shifted, labels_N[:, None], axis=1)[:, 0]
    return np.log(np.exp(shifted).sum(axis=1)) - true_N


def scores(logits_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """accuracy (fraction), nll (nats), ece (fraction, 15 bins) and brier of one split."""
    probabilities_NK = softmax(logits_NK)
    return {
        "accuracy": float((logits_NK.argmax(axis=1) == labels_N).mean()),
        "nll": nll(logits_NK, labels_N),
        "ece": ece(probabilities_NK, labels_N),
        "brier": brier(probabilities_NK, labels_N),
    }
