"""How good and how honest probabilities are: accuracy, NLL, Brier score, ECE and its relatives.

Section 3 of the paper reports ECE with 15 bins (Guo et al. 2017, arXiv 1706.04599, equation 3),
Figure 2 the reliability diagrams behind it.
Shape letters: S seeds, N examples, K classes, B bins, G groups of examples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lsexp.analysis._inputs import array, below_max, labelled, of_label
from lsexp.analysis.statistics import Interval, groups_of, over_both_of_sums

BINS = 15

# What a 95 % range leaves out below and above.
TAILS = (0.025, 0.975)


class Reliability(NamedTuple):
    """A reliability diagram in numbers, arrays [B].

    Attributes:
        low: lower edge of the bin, not in it (but a confidence of 0 is in the first).
        high: upper edge, in it.
        n: how many examples it holds, int64.
        confidence: their mean confidence; NaN where there are none.
        accuracy: the fraction of them that is right; NaN where there are none.
    """

    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities float64 [N, K], each row summing to one; any finite float32 logits.

    A logit of -inf is a class of probability 0.

    Raises:
        ValueError: logits that are not [N, K], a logit that is NaN or +inf, or an example with
            nothing but -inf.

    >>> softmax(np.array([[0.0, np.log(3.0)], [1e30, -1e30]])).tolist()
    [[0.25, 0.75], [1.0, 0.0]]
    """
    exponentials = np.exp(below_max(logits_NK))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def ece(probabilities_NK: np.ndarray, labels_N: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the mean over examples of |accuracy - confidence| of its bin.

    1. Confidence is the largest probability; `bins` bins of equal width divide 0..1.
    2. A bin holds (low, high], so that a confidence of 1 falls in the last; empty bins count 0.
    3. A perfectly calibrated model does not score 0 at finite N: the estimate is biased upward.

    Args:
        probabilities_NK: rows sum to one.
        labels_N: class indices.
        bins: how many.

    Returns:
        A fraction in 0..1.

    Raises:
        ValueError: as `top_label` and `reliability`.

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
    confidence_N, correct_N = _checked(confidence_N, correct_N)
    gap_by_bin = np.bincount(
        _bin(confidence_N, bins), weights=correct_N - confidence_N, minlength=bins
    )
    return float(np.abs(gap_by_bin).sum() / len(confidence_N))


def top_label(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest probability of each example (float) and whether that class is the label (bool).

    Of classes that tie the first counts as predicted.

    Args:
        probabilities_NK: rows sum to one.
        labels_N: class indices.

    Raises:
        ValueError: no examples, not a row of probabilities for each label, or a label that is no
            class; rows that do not sum to one.

    >>> top_label(np.array([[0.3, 0.7], [0.5, 0.5]]), np.array([1, 1]))
    (array([0.7, 0.5]), array([ True, False]))
    """
    probabilities_NK, labels_N = labelled(probabilities_NK, labels_N, "probabilities")
    _check_rows(probabilities_NK)
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
        ValueError: as `reliability`.

    Four of confidence .75, two right: |g| = .25 at a standard error of .25.

    >>> round(debiased_ece(np.full(4, 0.75), np.array([1, 1, 0, 0])), 6)
    0.208342
    """
    confidence_N, correct_N = _checked(confidence_N, correct_N)
    together_N = np.zeros(len(confidence_N), np.int64)
    return float(_debiased(_sums(confidence_N, correct_N, bins, together_N))[0])


def debiased_ece_over_both(
    confidence_SN: np.ndarray, correct_SN: np.ndarray, bins: int = BINS
) -> Interval:
    """Mean over seeds of `debiased_ece`, with its interval over seeds and examples.

    What `statistics.over_both_of` gives, with its notes, from one pass over the examples: see
    `statistics.over_both_of_sums`.

    Args:
        confidence_SN: the largest probability of each example with each seed, 0..1. The same
            examples in the same order for every seed.
        correct_SN: whether that class is the label, bool or 0 and 1.
        bins: equal widths, (low, high] as in `ece`.

    Raises:
        ValueError: as `reliability`, no seeds, or fewer than two examples.

    >>> confidence = np.array([[0.9, 0.8, 0.7, 0.9], [0.9, 0.7, 0.7, 0.8]])
    >>> debiased_ece_over_both(confidence, np.array([[1, 1, 1, 0], [1, 0, 1, 0]])).n
    2
    """
    confidence_SN, correct_SN = array(confidence_SN), array(correct_SN)
    if confidence_SN.ndim != 2 or confidence_SN.shape != correct_SN.shape or not len(confidence_SN):
        raise ValueError(
            f"confidences and correctness must be [S, N], not {confidence_SN.shape} and "
            f"{correct_SN.shape}"
        )
    group_N = groups_of(confidence_SN.shape[1])
    sums_SG3B = np.stack(
        [
            _sums(*_checked(*pair), bins, group_N)
            for pair in zip(confidence_SN, correct_SN, strict=True)
        ]
    )
    return over_both_of_sums(_debiased, sums_SG3B, group_N)


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
        ValueError: no examples, or confidences that are no probabilities.

    Two of confidence .5: 0, 1 or 2 are right, at |gap| .5, 0 or .5, and half of the time 1 is.

    >>> round(ece_floor(np.array([0.5, 0.5])), 6)
    0.25
    """
    confidence_N, _ = _checked(confidence_N, np.zeros(len(confidence_N)))
    bin_N = _bin(confidence_N, bins)
    count = np.bincount(bin_N, minlength=bins)
    wrong = np.bincount(bin_N, weights=1 - confidence_N, minlength=bins)
    variance = np.bincount(bin_N, weights=confidence_N * (1 - confidence_N), minlength=bins)
    total = 0.0
    for n, w, v in zip(count.tolist(), wrong.tolist(), variance.tolist(), strict=True):
        # Where w rounds to n next to none is expected to be right, and next to nothing is added.
        if v > 0 and w < n:
            total += _binomial_mean_deviation(n, w / n) * math.sqrt(v / (w * (1 - w / n)))
    return total / len(confidence_N)


def reliability(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = BINS) -> Reliability:
    """Accuracy beside mean confidence, bin by bin: what Figure 2 draws and `ece` averages.

    1. The bins are those of `ece`; the mean over examples of |accuracy - confidence| is `ece`.
    2. Points belong at the mean confidence, not at the middle of the bin: the last bin of a
       confident model has its examples near 1.
    3. A bin of few examples says little: see `n` and `sampling_band`.

    Args:
        confidence_N: the largest probability of each example, 0..1, as `top_label` gives it.
        correct_N: whether that class is the label, bool or 0 and 1.
        bins: how many of equal width divide 0..1.

    Raises:
        ValueError: lengths differ, no examples, or confidences that are no probabilities.

    >>> found = reliability(np.array([0.9, 0.8, 0.4, 1.0]), np.array([1, 0, 1, 1]), bins=2)
    >>> found.n.tolist(), found.confidence.round(6).tolist(), found.accuracy.round(6).tolist()
    ([1, 3], [0.4, 0.9], [1.0, 0.666667])
    """
    confidence_N, correct_N = _checked(confidence_N, correct_N)
    edges = _edges(bins)
    bin_N = _bin(confidence_N, bins)
    count = np.bincount(bin_N, minlength=bins)
    divisor = np.where(count, count, np.nan)
    return Reliability(
        low=edges[:-1],
        high=edges[1:],
        n=count,
        confidence=np.bincount(bin_N, weights=confidence_N, minlength=bins) / divisor,
        accuracy=np.bincount(bin_N, weights=correct_N, minlength=bins) / divisor,
    )


def sampling_band(confidence_N: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Where a perfectly calibrated model with these confidences has its accuracy, bin by bin.

    The 2.5 % and 97.5 % quantiles of right / n, right ~ Binomial(n, mean confidence of the bin).

    1. An accuracy outside is what sampling alone shows in at most 5 % of the bins; accuracies
       move in steps of 1 / n, so that it is often much less.
    2. It is about each bin alone: of a calibrated model's 15 bins up to .75 lie outside on average.
    3. Where the confidences of a bin differ the true range is a little narrower.

    Args:
        confidence_N: the largest probability of each example, 0..1.
        bins: equal widths, (low, high] as in `ece`.

    Returns:
        Lower and upper ends, fractions [B]; NaN where a bin is empty.

    Raises:
        ValueError: no examples, or confidences that are no probabilities.

    Four of confidence .5: 0 and 4 right have a chance of 1/16 each, more than 2.5 %.

    >>> low, high = sampling_band(np.array([0.5, 0.5, 0.5, 0.5, 1.0, 1.0]), bins=2)
    >>> low.tolist(), high.tolist()
    ([0.0, 1.0], [1.0, 1.0])
    """
    from scipy.special import bdtr  # as in statistics.py

    found = reliability(confidence_N, np.zeros(len(confidence_N)), bins)
    ends_B2 = np.full((bins, 2), np.nan)
    for b in np.flatnonzero(found.n):
        n = found.n[b]
        # A quantile is the first number of right ones whose cumulative chance reaches it.
        chances = bdtr(np.arange(n + 1), n, min(found.confidence[b], 1.0))
        ends_B2[b] = np.searchsorted(chances, TAILS) / n
    return ends_B2[:, 0], ends_B2[:, 1]


def mce(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = BINS) -> float:
    """Maximum calibration error: the largest |accuracy - confidence| of a bin.

    Equation 5 of Guo et al. 2017 (arXiv 1706.04599).

    1. Empty bins do not count, all others alike: often it is a bin of a handful of examples that
       decides, and more bins give a larger value.
    2. So it says nothing without that bin's n: see `reliability`.

    Args:
        confidence_N: the largest probability of each example, 0..1.
        correct_N: whether that class is the label, bool or 0 and 1.
        bins: equal widths, (low, high] as in `ece`.

    Returns:
        A fraction, at least `ece`.

    Raises:
        ValueError: as `reliability`.

    >>> round(mce(np.array([0.9, 0.9, 0.4]), np.array([1, 1, 0]), bins=2), 6)
    0.4
    """
    found = reliability(confidence_N, correct_N, bins)
    return float(np.nanmax(np.abs(found.accuracy - found.confidence)))


def adaptive_ece(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = BINS) -> float:
    """`ece` with bins of equally many examples, from the least to the most confident.

    What Mukhoti et al. 2020 (arXiv 2002.09437) call AdaECE. "Adaptive" in Nixon et al. 2019
    (arXiv 1904.01685) is over all classes, and some libraries' ACE is the unweighted mean over
    bins of equal width: neither is this.

    1. Where nearly all confidences are above 14/15 `ece` has one bin, this still has all.
    2. Examples of equal confidence share a bin, that of the middle one of them: which is which
       among them means nothing. So bins may be of unlike size, or empty; with all confidences
       equal it is |`confidence_gap`|.
    3. Of distinct confidences each bin has N / bins, rounded down or up. With fewer examples than
       bins each is one of its own, and the value is the mean of |right - confidence|.

    Args:
        confidence_N: the largest probability of each example, 0..1.
        correct_N: whether that class is the label, bool or 0 and 1.
        bins: how many.

    Returns:
        A fraction in 0..1.

    Raises:
        ValueError: as `reliability`.

    Bins {.6, .7} and {.8, .9}: |.5 - .65| and |1 - .85|.

    >>> confidence, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 1, 0])
    >>> round(adaptive_ece(confidence, correct, bins=2), 6)
    0.15
    """
    confidence_N, correct_N = _checked(confidence_N, correct_N)
    ordered_N = np.sort(confidence_N)
    first_N = np.searchsorted(ordered_N, confidence_N, side="left")
    after_N = np.searchsorted(ordered_N, confidence_N, side="right")
    # The middle of ranks first..after - 1 in whole numbers: no rounding decides between two bins.
    bin_N = bins * (first_N + after_N) // (2 * len(confidence_N))
    gap_by_bin = np.bincount(bin_N, weights=correct_N - confidence_N)
    return float(np.abs(gap_by_bin).sum() / len(confidence_N))


def classwise_ece(probabilities_NK: np.ndarray, labels_N: np.ndarray, bins: int = BINS) -> float:
    """Mean over classes of the ECE of each class's own probability (Kull et al. 2019, 1910.12656).

    1. Class k against the rest: in each bin of p_k, |how often k is the label - mean p_k|,
       weighted by the bin's share of all N examples. It sees what is told of all classes, not
       only of the predicted one.
    2. No threshold: the many probabilities near 0 count. They make it small, about 1 / K of an
       ECE: compare only among equal K.
    3. Upward biased as `ece`, and `ece_floor` is not its floor.

    Args:
        probabilities_NK: rows sum to one.
        labels_N: class indices.
        bins: equal widths, (low, high] as in `ece`.

    Returns:
        A fraction in 0..1.

    Raises:
        ValueError: as `top_label`, or numbers that are no probabilities.

    Class 0: bins {.2} and {.8, .6} with gaps |0 - .2| and |2 - 1.4| in sum, over 3 examples; with
    two classes the other mirrors it.

    >>> p = np.array([[0.8, 0.2], [0.6, 0.4], [0.2, 0.8]])
    >>> round(classwise_ece(p, np.array([0, 0, 1]), bins=2), 6)
    0.266667
    """
    probabilities_NK, labels_N = labelled(probabilities_NK, labels_N, "probabilities")
    num_classes = probabilities_NK.shape[1]
    is_label_NK = labels_N[:, None] == np.arange(num_classes)
    probability, is_label = _checked(probabilities_NK.ravel(), is_label_NK.ravel())
    class_and_bin = bins * np.tile(np.arange(num_classes), len(labels_N)) + _bin(probability, bins)
    gaps = np.bincount(class_and_bin, weights=is_label - probability)
    return float(np.abs(gaps).sum() / len(probability))


def confidence_gap(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Mean confidence less accuracy: above 0 where a model is over-confident, below 0 where under.

    1. `ece` has no sign and a floor; this has a sign, and no bias. Its absolute value is `ece` of
       one bin, and never more than `ece` of several: what cancels between bins is lost.
    2. A mean of per-example values (confidence - right), so that `statistics` has intervals of it.

    Args:
        confidence_N: the largest probability of each example, 0..1.
        correct_N: whether that class is the label, bool or 0 and 1.

    Returns:
        A fraction in -1..1.

    Raises:
        ValueError: as `reliability`.

    >>> round(confidence_gap(np.array([0.9, 0.8]), np.array([1, 0])), 6)
    0.35
    """
    confidence_N, correct_N = _checked(confidence_N, correct_N)
    return float((confidence_N - correct_N).mean())


def _checked(confidence_N: np.ndarray, correct_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidence_N = array(confidence_N, dtype=np.float64)
    correct_N = array(correct_N, dtype=np.float64)
    if confidence_N.ndim != 1 or confidence_N.shape != correct_N.shape:
        raise ValueError(
            f"confidences and correctness must be [N], not {confidence_N.shape} and "
            f"{correct_N.shape}: `top_label` gives both"
        )
    if not len(confidence_N):
        raise ValueError("no confidences: at least one example is needed")
    _check_probabilities(confidence_N, "confidences")
    if not ((correct_N == 0) | (correct_N == 1)).all():
        raise ValueError("correctness must be 0 or 1")
    return confidence_N, correct_N


def _check_rows(probabilities_NK: np.ndarray) -> None:
    _check_probabilities(probabilities_NK, "probabilities")
    apart_N = np.abs(probabilities_NK.sum(axis=1, dtype=np.float64) - 1)
    if apart_N.max() > 0.01:  # less is the rounding of 16 bits
        worst = int(apart_N.argmax())
        total = probabilities_NK[worst].sum(dtype=np.float64)
        raise ValueError(
            f"probabilities of an example must sum to 1: those of number {worst} to {total:.4g}; "
            f"are these sigmoids?"
        )


def _check_probabilities(values: np.ndarray, what: str) -> None:
    if np.isnan(values).any():
        raise ValueError(f"{what} that are NaN: leave diverged runs out first")
    # A float32 softmax may exceed 1 by its rounding.
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():
        raise ValueError(f"{what} must be in 0..1: are these logits?")


def _bin(confidence_N: np.ndarray, bins: int) -> np.ndarray:
    """The bin (low, high] of each confidence; 0 is of the first."""
    return np.clip(np.digitize(confidence_N, _edges(bins), right=True) - 1, 0, bins - 1)


def _edges(bins: int) -> np.ndarray:
    """k / bins, as a confidence of k / bins is rounded; linspace misses it where 1 / bins is not
    exact."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    edges: np.ndarray = np.arange(bins + 1) / bins
    return edges


def _sums(
    confidence_N: np.ndarray, correct_N: np.ndarray, bins: int, group_N: np.ndarray
) -> np.ndarray:
    """Sums over the examples of each bin, by group, float64 [G, 3, B]: how many there are, how
    many are right, correct - confidence."""
    shape = (int(group_N.max()) + 1, bins)
    cell_N = group_N * bins + _bin(confidence_N, bins)
    sums = [
        np.bincount(cell_N, weights=weights_N, minlength=math.prod(shape)).reshape(shape)
        for weights_N in (None, correct_N, correct_N - confidence_N)
    ]
    return np.stack(sums, axis=1).astype(np.float64)


def _debiased(sums_3B: np.ndarray) -> np.ndarray:
    """`debiased_ece` of what `_sums` gives, [..., 3, B] to [...]."""
    count_B, right_B, gap_B = np.moveaxis(sums_3B, -2, 0)
    # Sums over a bin's examples, not means: they need no further weight.
    deviation_B = np.sqrt(right_B * (count_B - right_B) / np.maximum(count_B, 1))
    excess_B = 2 * np.abs(gap_B) - _folded_normal_mean(gap_B, deviation_B)
    # What rounding leaves of sums less all of their examples does not count.
    excess_B = np.where(count_B > 0, excess_B, 0)
    found: np.ndarray = excess_B.sum(axis=-1) / count_B.sum(axis=-1)
    return found


def _folded_normal_mean(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """E|x| of x ~ Normal(mean, deviation^2), for each."""
    noisy = deviation > 0
    mu, sigma = mean[noisy], deviation[noisy]
    scaled = mu / (sigma * math.sqrt(2))
    erf = np.array([math.erf(x) for x in scaled.tolist()])
    found: np.ndarray = np.abs(mean)
    found[noisy] = sigma * math.sqrt(2 / math.pi) * np.exp(-(scaled**2)) + mu * erf
    return found


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
    """Brier score: mean over examples of the squared distance to the one-hot label.

    The sum over all classes, as in Brier 1950 (Monthly Weather Review 78, 1-3); of two classes it
    is twice what counts one of them only.

    Args:
        probabilities_NK: rows sum to one.
        labels_N: class indices.

    Returns:
        A number in 0..2, 0 for certain and right.

    Raises:
        ValueError: as `top_label`, or numbers that are no probabilities.

    >>> brier(np.array([[0.5, 0.5]]), np.array([0]))
    0.5
    """
    return float(brier_by_example(probabilities_NK, labels_N).mean())


def brier_by_example(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """What `brier` is the mean of, float64 [N]."""
    probabilities_NK, labels_N = labelled(probabilities_NK, labels_N, "probabilities")
    _check_rows(probabilities_NK)
    probabilities_NK = probabilities_NK.astype(np.float64, copy=False)
    squared_N: np.ndarray = (probabilities_NK**2).sum(axis=1)
    return squared_N - 2 * of_label(probabilities_NK, labels_N) + 1


def nll(logits_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels in nats, from logits (log 0 never happens).

    Args:
        logits_NK: any finite ones; -inf is a class of probability 0.
        labels_N: class indices.

    Returns:
        Nats, at least 0; infinite where a label's logit is -inf.

    Raises:
        ValueError: as `softmax`, no examples, other than one label for each, or a label that is no
            class.

    >>> round(nll(np.array([[0.0, 0.0]]), np.array([1])), 6)
    0.693147
    """
    return float(nll_by_example(logits_NK, labels_N).mean())


def nll_by_example(logits_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """What `nll` is the mean of, in nats, float64 [N]."""
    logits_NK, labels_N = labelled(logits_NK, labels_N, "logits")
    below_NK = below_max(logits_NK)
    return np.log(np.exp(below_NK).sum(axis=1)) - of_label(below_NK, labels_N)


def scores(logits_NK: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """accuracy (fraction), nll (nats), ece (fraction, 15 bins) and brier of one split.

    Of classes that tie the first counts as predicted.

    Raises:
        ValueError: as `nll`.
    """
    logits_NK, labels_N = labelled(logits_NK, labels_N, "logits")
    probabilities_NK = softmax(logits_NK)
    return {
        "accuracy": float((logits_NK.argmax(axis=1) == labels_N).mean()),
        "nll": nll(logits_NK, labels_N),
        "ece": ece(probabilities_NK, labels_N),
        "brier": brier(probabilities_NK, labels_N),
    }
