"""How much of which example it saw a network's logits keep: the paper's Figure 6 (section 4).

X is the number of a training example, uniform over N, and Y = f(d(x)) one number that the network
gives under a random augmentation d: the difference of two fixed logits. Y is modelled as normal
around a mean of its own for each example, with one variance for all. In nats.
Shape letters: N examples, L draws for the means, M draws that are judged, B subsets, Q points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

NARROW = 1e-12
"""A noise of less than this part of the spread counts as none."""


class Information(NamedTuple):
    """An estimate and its parts, in nats.

    Attributes:
        total: I(X;Y), at most log N.
        between: I(C;Y), what Y tells of the class; at most log of the number of classes.
        within: I(X;Y|C), what it tells of the example beyond its class: what smoothing is said to
            erase. `between + within == total`.
        lower, upper: bounds on the information of the mixture that is fitted (`bounds`); its means
            scatter, the more the fewer draws they are of, so that both lie too high.
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

    Raises:
        ValueError: fewer than two examples, no draws, lengths that differ, a Y that is not finite.

    Two classes far apart, examples alike within, noise of 1:

    >>> rng = np.random.RandomState(0)
    >>> at = np.repeat([0.0, 100.0], 300)[:, None]
    >>> found = estimate(at + rng.randn(600, 200), at + rng.randn(600, 5), at[:, 0])
    >>> round(found.total, 2), round(found.between, 2), round(found.within, 2)
    (0.69, 0.69, -0.0)
    """
    means_NL, fresh_NM = np.asarray(means_NL, np.float64), np.asarray(fresh_NM, np.float64)
    classes_N = np.asarray(classes_N)
    if means_NL.ndim != 2 or fresh_NM.ndim != 2 or not means_NL.size or not fresh_NM.size:
        raise ValueError(f"draws must be [N, L] and [N, M], not {means_NL.shape}, {fresh_NM.shape}")
    if not len(means_NL) == len(fresh_NM) == len(classes_N) or len(classes_N) < 2:
        raise ValueError(
            f"{len(means_NL)}, {len(fresh_NM)} and {len(classes_N)} examples: must be the same, "
            f"two or more"
        )
    if not (np.isfinite(means_NL).all() and np.isfinite(fresh_NM).all()):
        raise ValueError("values that are not finite")
    mu_N = means_NL.mean(axis=1)
    variance = float(((fresh_NM - mu_N[:, None]) ** 2).mean())
    spread = float(np.ptp(np.concatenate([mu_N, fresh_NM.ravel()])))
    if variance <= (NARROW * spread) ** 2:
        return _without_noise(mu_N, classes_N, NARROW * spread)
    own = classes_N[:, None] == classes_N[None, :]
    total, within = 0.0, 0.0
    for y_N in fresh_NM.T:
        log_NN = -((y_N[:, None] - mu_N[None, :]) ** 2) / (2 * variance)
        among_all = logsumexp(log_NN, axis=1) - np.log(len(mu_N))
        among_own = logsumexp(log_NN, axis=1, b=own) - np.log(own.sum(axis=1))
        mine = np.diagonal(log_NN)
        total += float((mine - among_all).mean())
        within += float((mine - among_own).mean())
    total, within = total / fresh_NM.shape[1], within / fresh_NM.shape[1]
    return Information(total, total - within, within, *bounds(mu_N, variance))


def bounds(mu_N: np.ndarray, variance: float) -> tuple[float, float]:
    """Between which the information of a mixture of N equal normals lies (Kolchinsky, Tracey 2017).

    -mean over x of log(mean over x' of exp(-D)) with D = (mu_x - mu_x')^2 / 8 s^2 (Bhattacharyya)
    below and (mu_x - mu_x')^2 / 2 s^2 (Kullback-Leibler) above (arXiv 1706.02419, section IV).

    Args:
        mu_N: means; variance: that of each, above 0.

    >>> low, high = bounds(np.array([0.0, 1000.0]), 1.0)
    >>> round(low, 4), round(high, 4)
    (0.6931, 0.6931)
    """
    squared_NN = (mu_N[:, None] - mu_N[None, :]) ** 2
    lower, upper = (
        float(np.log(len(mu_N)) - logsumexp(-squared_NN / (by * variance), axis=1).mean())
        for by in (8, 2)
    )
    return lower, upper


def exact(mu_N: np.ndarray, variance: float, points: int = 20_001) -> float:
    """I(X;Y) of a mixture of N equal normals, by quadrature: what the estimate should find.

    h(Y) - h(Y|X), the first by the trapezoid rule over ten deviations beyond the outermost means.
    The grid must be finer than the noise: `points` of them over the range.

    >>> round(exact(np.array([0.0, 1000.0]), 1.0), 4)
    0.6931
    """
    deviation = np.sqrt(variance)
    y_Q = np.linspace(mu_N.min() - 10 * deviation, mu_N.max() + 10 * deviation, points)
    log_density_Q = np.empty(points)
    for part in np.array_split(np.arange(points), max(1, points * len(mu_N) // 2_000_000)):
        log_NQ = -((y_Q[part][None, :] - mu_N[:, None]) ** 2) / (2 * variance)
        log_density_Q[part] = logsumexp(log_NQ, axis=0) - np.log(len(mu_N))
    log_density_Q -= np.log(deviation * np.sqrt(2 * np.pi))
    entropy = -np.trapezoid(np.exp(log_density_Q) * log_density_Q, y_Q)
    return float(entropy - 0.5 * np.log(2 * np.pi * np.e * variance))


def _without_noise(mu_N: np.ndarray, classes_N: np.ndarray, near: float) -> Information:
    """Y is its mean: an example is known but for those that share it."""
    alike = np.abs(mu_N[:, None] - mu_N[None, :]) <= near
    own = classes_N[:, None] == classes_N[None, :]
    total = float(-np.log(alike.mean(axis=1)).mean())
    within = float(-np.log((alike & own).sum(axis=1) / own.sum(axis=1)).mean())
    return Information(total, total - within, within, total, total)
