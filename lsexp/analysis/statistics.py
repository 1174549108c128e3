"""What a few seeds and one test set allow to be said: intervals, paired differences, verdicts.

Every table and finding takes its interval, n and verdict from here (the paper's Table 2 has a ±
that it does not define, its Table 3 none). Intervals are at 95 %.

A number measured on trained networks varies for two reasons: other seeds would have given other
networks, other test examples another score (Bouthillier et al. 2021, arXiv 2103.03098). The seeds
are few and judged on the same examples, so the two are crossed, and an interval says which it is
over. Values come in the unit of the metric and leave in it.
Shape letters: S seeds, N examples, G groups of examples, E settings compared with one baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lsexp.analysis._inputs import array

# Half of the 5 % that a 95 % interval leaves out, on each side.
UPPER = 0.975
Z = 1.959963984540054

# Below this the smallest two-sided p of a sign-flip test, 2 / 2**n, is above .05.
MIN_SEEDS_FOR_P = 6
MIN_SEEDS_FOR_VERDICT = 3
# 2**15 sign patterns after symmetry; beyond it they are drawn.
MAX_SEEDS_ENUMERATED = 16
SIGN_FLIPS_DRAWN = 99_999

Over = Literal["seeds", "examples", "both"]
Direction = Literal["above", "below", "within"]
Verdict = Literal["supported", "contradicted", "inconclusive"]


class Interval(NamedTuple):
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate, in the unit of the metric.
        low: lower end; None where there is no interval.
        high: upper end; None where there is no interval.
        n: how many there are of what `over` names; seeds, the fewer, for "both".
        over: what would be drawn anew: "seeds" (these examples), "examples" (these seeds), "both".
    """

    value: float
    low: float | None
    high: float | None
    n: int
    over: Over


class Paired(NamedTuple):
    """A setting against its baseline, seed by seed.

    Attributes:
        difference: value minus baseline, with the t interval over seeds.
        correlation: Pearson's, of the two over seeds: what common random numbers kept; None below
            three seeds or where one of them does not vary.
        p: two-sided, of the sign-flip test, not corrected for several settings (`holm`); None
            below six seeds.
    """

    difference: Interval
    correlation: float | None
    p: float | None


def over_seeds(values_S: np.ndarray) -> Interval:
    """Mean over seeds with Student's t interval: what other seeds would give on these examples.

    1. One seed has no interval, and none is made up from its examples.
    2. Seeds without any spread have none either: it would have width 0. Few seeds agree exactly
       because a metric is coarse (accuracy moves in steps of 1 / N), not because it is certain.
    3. A diverged seed is an error here: leaving it out is for the caller to decide and to say.

    Raises:
        ValueError: no seeds, or a value that is not finite.

    >>> over_seeds(np.array([1.0, 2.0, 3.0]))
    Interval(value=2.0, low=-0.484..., high=4.484..., n=3, over='seeds')
    >>> over_seeds(np.array([0.9]))
    Interval(value=0.9, low=None, high=None, n=1, over='seeds')
    """
    values_S = _checked(values_S, "values_S", dimensions=1)
    return _t_interval(values_S, "seeds", scale=float(np.abs(values_S).max()))


def over_examples(scores_SN: np.ndarray) -> Interval:
    """Mean of a per-example score with its interval over examples, these seeds given.

    1. Each example's score is first averaged over seeds: the S x N scores are not independent,
       because an example that is hard for one seed is hard for the others.
    2. It says nothing about other seeds, so that no claim is decided by it.
    3. The t interval of N means leans on the central limit theorem: with fewer than some ten
       mistakes in the test set it is too narrow, and with none there is no interval.

    Args:
        scores_SN: what each example scores with each seed: 1 or 0 for right or wrong, NLL in
            nats, Brier score. The same examples in the same order for every seed.

    Raises:
        ValueError: no scores, or a score that is not finite.

    >>> over_examples(np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]]))
    Interval(value=0.666..., low=-0.083..., high=1.416..., n=4, over='examples')
    """
    scores_SN = _checked(scores_SN, "scores_SN", dimensions=2)
    return _t_interval(scores_SN.mean(axis=0), "examples", scale=float(np.abs(scores_SN).max()))


def over_both(scores_SN: np.ndarray) -> Interval:
    """Mean of a per-example score with its interval over seeds and examples, crossed.

    Components of variance of score = mean + seed + example + residual, from the mean squares A
    (seeds), B (examples) and R (residual). The mean's variance is A / SN, what the seed means
    show, plus (B - R) / SN, what all seeds share of the examples. Each part is multiplied by the
    square of its own t quantile (Banerjee 1960, Sankhya 22, 357-358):
    half width^2 = (t(S - 1)^2 A + t(N - 1)^2 (B - R)) / SN.

    1. Banerjee's sum covers 95 % or more whatever the mixture of the two parts, at the price of
       up to 98 % with three seeds. Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2,
       110-114) give intervals up to a quarter narrower that cover 92 % with three seeds that vary
       more than the examples do. The pigeonhole bootstrap of seeds and examples (Owen 2007,
       Annals of Applied Statistics 1, 386-411) takes the seeds' variance a factor (S - 1) / S too
       small and has no t quantile: some 70 % with three seeds where only seeds vary.
    2. B - R is 0 where chance makes it negative, and the interval is never narrower than
       `over_seeds` or `over_examples` of the same scores.
    3. One seed says nothing about seeds: no interval. Nor is there one where no score differs, or
       where neither the means of the seeds nor those of the examples do.
    4. Differences of two settings go in as differences of scores, seed by seed.

    Args:
        scores_SN: as in `over_examples`.

    Raises:
        ValueError: no scores, or a score that is not finite.

    >>> over_both(np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]]))
    Interval(value=0.666..., low=-0.121..., high=1.454..., n=3, over='both')
    """
    scores_SN = _checked(scores_SN, "scores_SN", dimensions=2)
    return _both(scores_SN.mean(axis=1), scores_SN)


def over_both_of(
    statistic: Callable[[int, np.ndarray], float],
    num_seeds: int,
    num_examples: int,
    groups: int = 100,
) -> Interval:
    """Interval over seeds and examples of what is no mean of per-example scores, such as ECE.

    A jackknife that leaves out one group of examples at a time turns the statistic of each seed
    into one pseudo-value per group (Tukey 1958; unequal groups as Busing, Meijer and van der
    Leeden 1999, Statistics and Computing 9, 3-8). These are crossed with the seeds as scores are,
    and `over_both` does the rest.

    1. The value is the mean over seeds of the statistic itself; only the width comes from the
       pseudo-values. The statistic's own bias stays, and more seeds make it no smaller: use
       `calibration.debiased_ece`, not `ece`. Of perfectly calibrated models even that is so
       biased that with ten seeds the interval mostly misses 0: compare it with `ece_floor`.
    2. All seeds leave out the same group; otherwise what they share of the examples is lost.
    3. The jackknife needs a statistic that is smooth in the weight of an example. |gap| of a bin is
       not at 0: near calibration the interval is too wide.
    4. A bootstrap is not used: repeated examples look like miscalibration, so that the
       percentiles of an ECE sit too high.
    5. Which examples make a group is drawn from a fixed seed: the order of the data may mean
       something, and the same data give the same interval.

    Args:
        statistic: called with the number of a seed, 0..S-1, and the sorted indices (int64) of the
            examples to use; the difference of two settings is such a statistic too.
        num_seeds: S.
        num_examples: N, at least 2.
        groups: how many groups of examples; all N where there are fewer. The statistic is called
            S x (groups + 1) times.

    Raises:
        ValueError: no seeds, fewer than two examples or groups, or a value that is not finite.

    A mean is where both ways agree (the sizes of groups being equal):

    >>> scores = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]])
    >>> over_both_of(lambda seed, kept: scores[seed, kept].mean(), 3, 4)
    Interval(value=0.666..., low=-0.121..., high=1.454..., n=3, over='both')
    """
    if num_seeds < 1 or num_examples < 2 or groups < 2:
        raise ValueError(
            f"over_both_of needs a seed, two examples and two groups,"
            f" not {num_seeds}, {num_examples} and {groups}"
        )
    group_N = groups_of(num_examples, groups)
    kept = [np.arange(num_examples)]
    kept += [np.flatnonzero(group_N != out) for out in range(int(group_N.max()) + 1)]
    found_SG = np.array(
        [[float(statistic(seed, indices)) for indices in kept] for seed in range(num_seeds)]
    )
    return _jackknife(found_SG[:, 0], found_SG[:, 1:], group_N)


def over_both_of_sums(
    statistic: Callable[[np.ndarray], np.ndarray], sums_SG: np.ndarray, group_N: np.ndarray
) -> Interval:
    """`over_both_of` of a statistic that needs only sums over the examples.

    Those without a group are all sums less the group's: one pass over the examples, not one for
    each group. The value and both ends are those of `over_both_of` but for rounding.

    Args:
        statistic: of sums [..., P], or of any shape instead of P, for each of "...": called once
            with [S, ...] of all examples and once with [S, G, ...] without each group.
        sums_SG: sums over each group with each seed, [S, G, P] or any shape instead of P.
        group_N: the group of each example, as `groups_of` gives it.

    Raises:
        ValueError: as `over_both_of`.

    A mean is a sum by a number:

    >>> scores = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]])
    >>> sums = np.stack([scores, np.ones((3, 4))], axis=-1)  # each example is a group
    >>> over_both_of_sums(lambda sums: sums[..., 0] / sums[..., 1], sums, np.arange(4))
    Interval(value=0.666..., low=-0.121..., high=1.454..., n=3, over='both')
    """
    num_groups = int(group_N.max()) + 1
    if not len(sums_SG) or sums_SG.shape[1] != num_groups or num_groups < 2:
        raise ValueError(
            f"over_both_of_sums needs a seed and two groups, not sums {sums_SG.shape} for "
            f"{num_groups} of groups"
        )
    all_S = sums_SG.sum(axis=1)
    return _jackknife(statistic(all_S), statistic(all_S[:, None] - sums_SG), group_N)


def groups_of(num_examples: int, groups: int = 100) -> np.ndarray:
    """The group of each example that `over_both_of` leaves out together, int64 [N].

    Drawn from a fixed seed; sizes differ by one at most. Each example is one of its own where there
    are no more than groups.

    Args:
        num_examples: N, at least 1.
        groups: how many, at least 1.

    Raises:
        ValueError: no examples or no groups.

    >>> groups_of(5, groups=2).tolist()
    [0, 0, 0, 1, 1]
    """
    if num_examples < 1 or groups < 1:
        raise ValueError(f"examples and groups must be at least 1, not {num_examples}, {groups}")
    order = np.random.RandomState(0).permutation(num_examples)
    group_N = np.empty(num_examples, np.int64)
    for group, members in enumerate(np.array_split(order, min(groups, num_examples))):
        group_N[members] = group
    return group_N


def paired(values_S: np.ndarray, baseline_S: np.ndarray) -> Paired:
    """How a setting differs from its baseline, seed by seed: runs that share all but the setting.

    1. The interval is Student's t on the n differences, and it decides; it has the gaps of
       `over_seeds` (one seed, or differences that are all the same).
    2. The sign-flip test asks how often random signs of the differences give a mean as far from 0.
       It needs no normal distribution, only that value and baseline could be exchanged. Its p is
       a multiple of 2 / 2**n: no p below six seeds, where it could not fall under .05.
    3. All 2**n patterns are counted up to n = 16; beyond, 99,999 are drawn from a fixed seed, and
       the observed one counts among them (Phipson and Smyth 2010, arXiv 1603.05766), so that
       p > 0.
    4. A correlation near 0 means that common random numbers no longer help, not that the pairing
       is wrong; from three seeds it is hardly an estimate.

    Args:
        values_S: the metric with each seed.
        baseline_S: the baseline's, of the same seeds in the same order.

    Raises:
        ValueError: lengths differ, no seeds, or a value that is not finite.

    >>> paired(np.array([0.9, 0.8]), np.array([0.8, 0.6])).difference.value
    0.15...
    >>> paired(np.array([3, 4, 5, 6, 7, 9.5]), np.array([1, 2, 3, 4, 5, 6])).p
    0.03125
    """
    values_S = _checked(values_S, "values_S", dimensions=1)
    baseline_S = _checked(baseline_S, "baseline_S", dimensions=1)
    if len(values_S) != len(baseline_S):
        raise ValueError(f"{len(values_S)} values for {len(baseline_S)} of the baseline")
    # Equal differences of unlike pairs agree only up to the rounding of what was subtracted.
    scale = float(max(np.abs(values_S).max(), np.abs(baseline_S).max()))
    differences_S = values_S - baseline_S
    varies = not (_constant(values_S, scale) or _constant(baseline_S, scale))
    correlation = None
    if len(values_S) >= 3 and varies:
        correlation = float(np.corrcoef(values_S, baseline_S)[0, 1])
    return Paired(
        difference=_t_interval(differences_S, "seeds", scale),
        correlation=correlation,
        p=_sign_flip_p(differences_S, scale) if len(values_S) >= MIN_SEEDS_FOR_P else None,
    )


def holm(p_E: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for being several (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    1. The i-th smallest of m is multiplied by m - i + 1, then no smaller than those before it and
       at most 1: an adjusted p below .05 rejects with at most 5 % of any false rejection among
       all, however they depend on each other (settings that share a baseline do).
    2. A None (no test) stays None and does not count in m.

    Raises:
        ValueError: a p outside 0..1.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = [(p, e) for e, p in enumerate(p_E) if p is not None]
    for p, _ in tested:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in 0..1, not {p}")
    adjusted: list[float | None] = [None] * len(p_E)
    largest = 0.0
    for rank, (p, e) in enumerate(sorted(tested)):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[e] = float(largest)
    return adjusted


def verdict(interval: Interval, direction: Direction = "above", margin: float = 0.0) -> Verdict:
    """What an interval says of a claim that was declared with its direction and margin.

    | direction | claims that the value is | supported | contradicted |
    |---|---|---|---|
    | above | above +margin | all of the interval is | all of it is below +margin |
    | below | below -margin | all of the interval is | all of it is above -margin |
    | within | between -margin and +margin ("no difference") | all is | all is beyond one end |

    1. Touching an end is not crossing it.
    2. "within" with the 95 % interval is stricter than two one-sided tests at 5 % (Schuirmann
       1987), which take the 90 % interval: a difference as large as the margin is called none in
       2.5 % of cases at most instead of 5 %.
    3. Inconclusive below three seeds, and where there is no interval.
    4. An interval over examples is refused: it holds for these seeds, a claim for any.

    Args:
        interval: over seeds or both, of a difference (or of what else is compared with 0).
        direction: what is claimed.
        margin: the smallest effect that counts, at least 0; above 0 for "within".

    Raises:
        ValueError: an interval over examples, another direction, or a margin that is not allowed.

    >>> verdict(Interval(0.02, 0.01, 0.03, 5, "seeds"))
    'supported'
    >>> verdict(Interval(0.02, 0.01, 0.03, 5, "seeds"), "within", margin=0.025)
    'inconclusive'
    """
    if interval.over == "examples":
        raise ValueError("a claim needs an interval over seeds or both, not over examples")
    if direction not in ("above", "below", "within"):
        raise ValueError(f"direction must be above, below or within, not {direction!r}")
    if not (margin > 0 or (margin == 0 and direction != "within")):
        raise ValueError(f"margin {margin} is not one for {direction!r}")
    if interval.low is None or interval.high is None or interval.n < MIN_SEEDS_FOR_VERDICT:
        return "inconclusive"
    if direction == "within":
        supported = -margin < interval.low and interval.high < margin
        contradicted = interval.low > margin or interval.high < -margin
    elif direction == "above":
        supported, contradicted = interval.low > margin, interval.high < margin
    else:
        supported, contradicted = interval.high < -margin, interval.low > -margin
    if supported:
        return "supported"
    return "contradicted" if contradicted else "inconclusive"


def accuracy_half_width(accuracy: float, num_examples: int) -> float:
    """How far one network's accuracy on N examples may be from that on all: half the 95 % interval.

    1. Wilson's (1927), not 1.96 sqrt(p (1 - p) / N): the two agree for large N, but the latter
       claims certainty where every example is right.
    2. More seeds do not make it much smaller: they share the examples.

    Args:
        accuracy: a fraction.
        num_examples: N, at least 1.

    Returns:
        A fraction: .0059 for an accuracy of .90 on 10,000 examples.

    Raises:
        ValueError: an accuracy outside 0..1, or no examples.

    >>> round(accuracy_half_width(0.9, 10_000), 4)
    0.0059
    """
    if not 0 <= accuracy <= 1 or num_examples < 1:
        raise ValueError(f"accuracy {accuracy} of {num_examples} examples")
    variance = accuracy * (1 - accuracy) / num_examples
    extra = Z**2 / num_examples
    return float(Z * np.sqrt(variance + extra / 4 / num_examples) / (1 + extra))


def smallest_visible_difference(disagreement: float, num_examples: int) -> float:
    """The difference of accuracy from which two networks on the same N examples are told apart.

    1.96 sqrt(d / N): the standard error without a difference is McNemar's (1947), in which only
    the examples count on which exactly one of the two is right.

    1. A true difference of this size is seen in half the cases; 1.43 times it in four of five.
    2. It is about two given networks, not two ways to train: seeds come on top.
    3. The normal approximation wants some ten such examples.

    Args:
        disagreement: d, the fraction of examples on which exactly one is right; not the (larger)
            fraction on which the predicted classes differ.
        num_examples: N, at least 1.

    Returns:
        A fraction: .0044 for a disagreement of .05 on 10,000 examples.

    Raises:
        ValueError: a disagreement outside 0..1, or no examples.

    >>> round(smallest_visible_difference(0.05, 10_000), 4)
    0.0044
    """
    if not 0 <= disagreement <= 1 or num_examples < 1:
        raise ValueError(f"disagreement {disagreement} of {num_examples} examples")
    return float(Z * np.sqrt(disagreement / num_examples))


def _checked(values: np.ndarray, name: str, dimensions: int) -> np.ndarray:
    values = array(values, dtype=np.float64)
    if values.ndim != dimensions or values.size == 0:
        raise ValueError(
            f"{name} must have {dimensions} dimensions, none empty, not {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite: leave diverged seeds out first")
    return values


def _constant(values: np.ndarray, scale: float) -> bool:
    """No spread beyond the rounding of numbers of this size, or one whose square rounds to 0."""
    return bool(np.ptp(values) <= max(1e-12 * scale, 1e-150))


def _t(num_values: int) -> float:
    from scipy.special import stdtrit  # a tenth of a second, which training has no use for

    return float(stdtrit(num_values - 1, UPPER))


def _t_interval(values: np.ndarray, over: Over, scale: float) -> Interval:
    value, n = float(values.mean()), len(values)
    if n == 1 or _constant(values, scale):
        return Interval(value, None, None, n, over)
    half = _t(n) * float(values.std(ddof=1)) / np.sqrt(n)
    return Interval(value, float(value - half), float(value + half), n, over)


def _jackknife(values_S: np.ndarray, without_SG: np.ndarray, group_N: np.ndarray) -> Interval:
    """Of what a statistic is of all examples, and without each group."""
    values_S = _checked(values_S, "the statistic", dimensions=1)
    without_SG = _checked(without_SG, "the statistic", dimensions=2)
    ratio_G = len(group_N) / np.bincount(group_N)
    return _both(values_S, ratio_G * values_S[:, None] - (ratio_G - 1) * without_SG)


def _both(values_S: np.ndarray, scores_SN: np.ndarray) -> Interval:
    """`over_both` with the seeds' values given apart from the scores (or pseudo-values)."""
    value, (S, N) = float(values_S.mean()), scores_SN.shape
    scale = float(np.abs(scores_SN).max())
    if S == 1 or N == 1 or _constant(scores_SN, scale):
        return Interval(value, None, None, S, "both")
    means_N = scores_SN.mean(axis=0)
    residual_SN = scores_SN - scores_SN.mean(axis=1, keepdims=True) - means_N + means_N.mean()
    seeds = N * values_S.var(ddof=1)
    examples = S * means_N.var(ddof=1)
    residual = (residual_SN**2).sum() / ((S - 1) * (N - 1))
    shared = max(examples - residual, 0.0)
    squared = max(_t(S) ** 2 * seeds + _t(N) ** 2 * shared, _t(N) ** 2 * examples)
    half = float(np.sqrt(squared / (S * N)))
    # Means that agree by chance are no certainty.
    if half <= 1e-12 * scale:
        return Interval(value, None, None, S, "both")
    return Interval(value, value - half, value + half, S, "both")


def _sign_flip_p(differences_S: np.ndarray, scale: float) -> float:
    n = len(differences_S)
    if n <= MAX_SEEDS_ENUMERATED:
        # |sum| is the same with all signs turned, so that the first may stay positive.
        patterns = np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1
        sums = (1 - 2 * patterns) @ differences_S
        counted, of = 0, len(sums)
    else:
        signs = np.random.RandomState(0).randint(2, size=(SIGN_FLIPS_DRAWN, n), dtype=np.int8)
        sums = (1 - 2 * signs) @ differences_S
        counted, of = 1, SIGN_FLIPS_DRAWN + 1
    # Patterns that tie with the observed one must not be lost to rounding.
    observed = abs(differences_S.sum()) - 1e-12 * n * scale
    return float((counted + (np.abs(sums) >= observed).sum()) / of)
