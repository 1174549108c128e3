"""How much of which example it saw a network's logits keep: the paper's Figure 6 (section 4).

X is the number of a training example, uniform over N, and Y = f(d(x)) one number that the network
gives under a random augmentation d: the difference of two fixed logits. Y is modelled as normal
around a mean of its own for each example, with one variance for all. In nats.
Shape letters: N examples, L draws for the means, M draws that are judged, B subsets, Q points.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lsexp.analysis._inputs import array

NARROW = 1e-12
"""A noise of less than this part of the spread counts as none."""
BLOCK = 2_000_000
"""Numbers held at once of the N x N of each draw: 16 MB."""


class Information(NamedTuple):
    """An estimate and its parts, in nats.

    Attributes:
        total: I(X;Y), at most log N.
        between: I(C;Y), what Y tells of the class; at most log of the number of classes.
        within: I(X;Y|C), what it tells of the example beyond its class: what smoothing is said to
            erase. `between + within == total`.
        lower, upper: bounds on the information of the mixture that is fitted (`bounds`), not of Y:
            its means scatter, the more the fewer draws they are of. That sets apart means that are
            close, and counts as noise where they are far apart.
    """

    total: float
    between: float
    within: float
    lower: float
    upper: float


def estimate(means_NL: np.ndarray, fresh_NM: np.ndarray, classes_N: np.ndarray) -> Information:
    """The paper's estimate of I(X;Y), by the formula of arXiv v3.

    mean over x, y of -(y - mu_x)^2 / 2 s^2 - log(mean over x' of exp(-(y - mu_x')^2 / 2 s^2))

    1. The mean over x' stands inside the logarithm, the one over x outside. The formula of the
       NeurIPS proceedings has neither, and gives some -4000 for 600 examples.
    2. In the inner mean y is held and x' runs. With x' in both places it is a constant, whatever
       the network.
    3. Y is the same difference of logits for the examples of both classes. Its absolute value
       folds the classes together.
    4. The y are other draws than those of the means: a draw is closer to a mean that it is part
       of, worth .1 nats with five draws.
    5. One variance for all. One for each example would need its logarithm in the first term too.
       A few examples with large noise blow it up and lower everything.
    6. With fresh draws it is a lower bound on I(X;Y) in expectation (Barber and Agakov 2003),
       whatever the true distributions: never above log N, a little below 0 where there is nothing
       to tell.
    7. Multiplying all Y, or adding to them, changes nothing: smaller logits alone lose nothing.
    8. Without noise Y tells examples apart as far as their means differ: log N, or less where some
       are equal.

    Args:
        means_NL: Y of L draws of each example, whose mean is mu_x.
        fresh_NM: Y of M other draws of each.
        classes_N: class of each example.

    Returns:
        The total and its parts, in nats.

    Raises:
        ValueError: fewer than two examples, no draws, lengths that differ, a Y that is not finite.

    Two classes far apart, examples alike within, noise of 1:

    >>> rng = np.random.RandomState(0)
    >>> at = np.repeat([0.0, 100.0], 300)[:, None]
    >>> found = estimate(at + rng.randn(600, 200), at + rng.randn(600, 5), at[:, 0])
    >>> round(found.total, 2), round(found.between, 2), round(found.within, 2)
    (0.69, 0.69, -0.0)
    """
    means_NL, fresh_NM, classes_N = _checked(means_NL, fresh_NM, classes_N)
    mu_N = means_NL.mean(axis=1)
    variance = float(((fresh_NM - mu_N[:, None]) ** 2).mean())
    near = NARROW * _spread(mu_N, fresh_NM)
    if variance <= near**2:
        return _without_noise(mu_N, classes_N, near)
    total, within = _compared(fresh_NM, mu_N, np.full(len(mu_N), variance), classes_N)
    return Information(total, total - within, within, *bounds(mu_N, variance))


def with_own_variances(means_NL: np.ndarray, fresh_NM: np.ndarray, classes_N: np.ndarray) -> float:
    """The total with a noise of each example's own: more where noise differs between examples.

    log N + mean over x, y of log(N(y; mu_x, s_x^2) / sum over x' of N(y; mu_x', s_x'^2)), a lower
    bound like `estimate`, which shares one variance. An example's is that of its draws for the
    mean, with one more draw that deviates as the average does: few draws would find too little
    noise by chance.

    Args:
        means_NL: Y of L draws of each example, L at least 2.
        fresh_NM: Y of M other draws of each.
        classes_N: class of each example.

    Returns:
        Nats, at most log N; a little below 0 where there is nothing to tell.

    Raises:
        ValueError: as `estimate`, or fewer than two draws for a mean.

    Two examples far apart, of unlike noise: log 2.

    >>> y = np.array([[0.0, 1.0], [90.0, 99.0]])
    >>> round(with_own_variances(y, y, np.array([0, 1])), 2)
    0.69
    """
    means_NL, fresh_NM, classes_N = _checked(means_NL, fresh_NM, classes_N)
    count = means_NL.shape[1]
    if count < 2:
        raise ValueError("one draw for each mean: two show a variance")
    mu_N = means_NL.mean(axis=1)
    squares_N = ((means_NL - mu_N[:, None]) ** 2).sum(axis=1)
    average = float(squares_N.mean()) / (count - 1)
    near = NARROW * _spread(mu_N, fresh_NM)
    if average <= near**2:
        return _without_noise(mu_N, classes_N, near).total
    return _compared(fresh_NM, mu_N, (squares_N + average) / count, classes_N)[0]


def nearest_neighbours(y_NM: np.ndarray, neighbours: int = 3) -> float | None:
    """The total without a model of the noise: Ross 2014 (10.1371/journal.pone.0087357).

    digamma(n) + digamma(k) - mean digamma(n_x) - mean digamma(m), over all n draws: n_x of the same
    example, m as near as the k-th of these, itself included.

    1. Equal draws of an example count once: a shift by whole pixels has few outcomes, and what is
       asked is how far they spread, not how often each was drawn.
    2. It is no bound: examples apart from all others give some 1 / (2 n_x) more than log N; with
       24 draws and normal noise it finds up to .06 nats too much.

    Args:
        y_NM: all draws of each example.
        neighbours: k, at least 1.

    Returns:
        Nats; None where an example has no more than k different draws.

    Raises:
        ValueError: draws that are not [N, M], none, a Y that is not finite, or a k below 1.

    >>> rng = np.random.default_rng(0)
    >>> far_apart = np.repeat([0.0, 1e6], 50)[:, None] + rng.normal(size=(100, 24))
    >>> round(nearest_neighbours(far_apart), 1)  # two clusters of examples alike: log 2
    0.7
    """
    from scipy.special import digamma  # as in statistics.py

    y_NM = array(y_NM, np.float64)
    if y_NM.ndim != 2 or not y_NM.size:
        raise ValueError(f"draws must be [N, M], none empty, not {y_NM.shape}")
    if not np.isfinite(y_NM).all():
        raise ValueError("values that are not finite")
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, not {neighbours}")
    own = [np.unique(y_M) for y_M in y_NM]
    sizes_N = np.array([len(y) for y in own])
    if sizes_N.min() <= neighbours:
        return None
    everything = np.sort(np.concatenate(own))
    near = []
    for y in own:
        # The k nearest are beside it in order: j below it and k - j above, whichever reach least.
        padded = np.concatenate([[-np.inf] * neighbours, y, [np.inf] * neighbours])
        radius = np.min(
            [
                np.maximum(
                    y - padded[neighbours - j : len(y) + neighbours - j],
                    padded[2 * neighbours - j : len(y) + 2 * neighbours - j] - y,
                )
                for j in range(neighbours + 1)
            ],
            axis=0,
        )
        inside = np.searchsorted(everything, y + radius, "left")
        near.append(inside - np.searchsorted(everything, y - radius, "right"))
    # Without the k-th itself, which lies on the edge: k or more, y among them.
    m = np.maximum(np.concatenate(near), neighbours)
    found = digamma(len(everything)) + digamma(neighbours)
    return float(found - np.average(digamma(sizes_N), weights=sizes_N) - digamma(m).mean())


def bounds(mu_N: np.ndarray, variance: float) -> tuple[float, float]:
    """Between which the information of a mixture of N equal normals lies (Kolchinsky, Tracey 2017).

    -mean over x of log(mean over x' of exp(-D)) with D = (mu_x - mu_x')^2 / 8 s^2 (Bhattacharyya)
    below and (mu_x - mu_x')^2 / 2 s^2 (Kullback-Leibler) above (arXiv 1706.02419, section IV).

    Args:
        mu_N: the means, one or more.
        variance: s^2 of each, finite and above 0, in the squared unit of the means.

    Returns:
        (lower, upper), in nats: 0 where all means are equal, log N where all are far apart.

    Raises:
        ValueError: no means, a mean that is not finite, or a variance that is not finite and above
            0.

    >>> low, high = bounds(np.array([0.0, 1000.0]), 1.0)
    >>> round(low, 4), round(high, 4)
    (0.6931, 0.6931)
    """
    mu_N = array(mu_N, np.float64)
    if mu_N.ndim != 1 or not mu_N.size:
        raise ValueError(f"means must be [N], one or more, not {mu_N.shape}")
    if not np.isfinite(mu_N).all():
        raise ValueError("values that are not finite")
    if not 0 < variance < np.inf:
        raise ValueError(f"variance must be finite and above 0, not {variance}")
    sums = np.zeros(2)
    for part in _blocks(len(mu_N), len(mu_N)):
        squared = (mu_N[part, None] - mu_N[None, :]) ** 2
        sums += [_log_sum(-squared / (by * variance)).sum() for by in (8, 2)]
    lower, upper = np.log(len(mu_N)) - sums / len(mu_N)
    return float(lower), float(upper)


def _checked(
    means_NL: np.ndarray, fresh_NM: np.ndarray, classes_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    means_NL, fresh_NM = array(means_NL, np.float64), array(fresh_NM, np.float64)
    classes_N = array(classes_N)
    if means_NL.ndim != 2 or fresh_NM.ndim != 2 or not means_NL.size or not fresh_NM.size:
        raise ValueError(f"draws must be [N, L] and [N, M], not {means_NL.shape}, {fresh_NM.shape}")
    if not len(means_NL) == len(fresh_NM) == len(classes_N) or len(classes_N) < 2:
        raise ValueError(
            f"{len(means_NL)}, {len(fresh_NM)} and {len(classes_N)} examples: must be the same, "
            f"two or more"
        )
    if not (np.isfinite(means_NL).all() and np.isfinite(fresh_NM).all()):
        raise ValueError("values that are not finite")
    return means_NL, fresh_NM, classes_N


def _spread(mu_N: np.ndarray, fresh_NM: np.ndarray) -> float:
    return float(np.ptp(np.concatenate([mu_N, fresh_NM.ravel()])))


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Rows of a table that are held at once."""
    size = max(1, BLOCK // columns)
    return (slice(start, start + size) for start in range(0, rows, size))


def _compared(
    fresh_NM: np.ndarray, mu_N: np.ndarray, variance_N: np.ndarray, classes_N: np.ndarray
) -> tuple[float, float]:
    """Mean over x, y of the log of a draw's density by its own normal, over that by the mixture of
    all and by that of its class: I(X;Y) and I(X;Y|C)."""
    log_size_N = -0.5 * np.log(variance_N / variance_N[0])
    of_class = [np.flatnonzero(classes_N == k) for k in np.unique(classes_N)]
    total, within = 0.0, 0.0
    for number, rows in enumerate(of_class):
        for part in _blocks(len(rows), len(mu_N)):
            here = rows[part]
            for y_P in fresh_NM[here].T:
                log_KP = [
                    _log_sum(log_size_N[k] - (y_P[:, None] - mu_N[k]) ** 2 / (2 * variance_N[k]))
                    for k in of_class
                ]
                mine_P = log_size_N[here] - (y_P - mu_N[here]) ** 2 / (2 * variance_N[here])
                among_all_P = np.logaddexp.reduce(log_KP) - np.log(len(mu_N))
                total += float((mine_P - among_all_P).sum())
                within += float((mine_P - log_KP[number] + np.log(len(rows))).sum())
    return total / fresh_NM.size, within / fresh_NM.size


def _log_sum(log_PN: np.ndarray) -> np.ndarray:
    """logsumexp over the last axis, of numbers that are finite; SciPy's takes thrice as long."""
    highest_P1 = log_PN.max(axis=1, keepdims=True)
    found_P: np.ndarray = np.log(np.exp(log_PN - highest_P1).sum(axis=1)) + highest_P1[:, 0]
    return found_P


def _without_noise(mu_N: np.ndarray, classes_N: np.ndarray, near: float) -> Information:
    """Y is its mean: an example is known but for those that share it."""
    total, within = 0.0, 0.0
    for part in _blocks(len(mu_N), len(mu_N)):
        alike = np.abs(mu_N[part, None] - mu_N[None, :]) <= near
        own = classes_N[part, None] == classes_N[None, :]
        total -= float(np.log(alike.mean(axis=1)).sum())
        within -= float(np.log((alike & own).sum(axis=1) / own.sum(axis=1)).sum())
    total, within = total / len(mu_N), within / len(mu_N)
    return Information(total, total - within, within, total, total)
