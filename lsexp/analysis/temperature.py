"""Temperature scaling: logits / T, with one T for all examples, so that confidences get honest.

Guo et al. 2017 (arXiv 1706.04599, section 4.2); Table 3, Figure 2 and Figure 4 of the paper. T > 1
softens the over-confident networks of hard labels, T < 1 sharpens those that smoothing left
under-confident. It changes no predicted class.
Shape letters: N examples, K classes, T temperatures.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from lsexp.analysis._inputs import array, labelled, of_label
from lsexp.analysis.calibration import BINS, ece_of
from lsexp.data.splits import stratified_order

By = Literal["nll", "ece"]

# From .1 to 10, 1 in the middle, each 4.7 % above the last: as fine as steps of .1 at the paper's
# T = 1.9.
GRID = 10 ** (np.arange(-50, 51) / 50)

# How far from the scale of the logits T is looked for. A factor of 1,000 leaves nothing to find
# where examples are of one scale: probabilities are then 0 and 1, or all alike.
REACH = 1000.0

# Largest slope, in nats by factor e of T, that still counts as a minimum; what brentq leaves is
# some 1e-13.
FLAT = 1e-7

# Confidences that are rounded differently must not decide between equal ECE.
EQUAL = 1e-12


class Temperature(NamedTuple):
    """A fitted T.

    Attributes:
        value: T > 0, to divide the logits by.
        by: what it minimises on the examples it was fitted on.
        at_edge: it is the end of what was searched, no minimum inside, hence no estimate.
    """

    value: float
    by: By
    at_edge: bool


class Curve(NamedTuple):
    """Calibration against T, float64 [T] each: nats, and fractions."""

    nll: np.ndarray
    ece: np.ndarray


def fit_temperature(
    logits_NK: np.ndarray, labels_N: np.ndarray, by: By = "nll", bins: int = BINS
) -> Temperature:
    """The T whose logits / T have the least NLL, or the least ECE, on these examples.

    By NLL, as Guo et al. do:
    1. NLL is convex in 1 / T, and its slope there is mean(E_p z - z_label) with p the
       probabilities at T: at T = infinity the mean logit less the label's, at T = 0 the largest
       logit less the label's. It has a minimum between if the first is below 0 and the second
       above, and only one; Brent's method finds its zero in log T, and the slope is checked.
    2. Where every label has the largest logit NLL falls for ever as T -> 0; where labels have no
       larger logits than other classes, as T -> infinity. Then `at_edge`, with a T that is 1,000
       times smaller or larger than the mean of (largest logit - mean logit). A few hundred
       examples without a mistake are enough for that: fit on more, or on another split.
    3. Multiplying the logits multiplies T: no range is fixed. Where a few examples have far larger
       logits than the rest, which a T below those 1,000 times may fit, it is looked for there too.

    By ECE, as the paper seems to do:
    4. On a fixed grid: ECE jumps where examples change bins, and has many minima.
    5. Among equals the T nearest 1, of two equally near the lower. `at_edge` at .1 and at 10.
    6. The least of many noisy values is too low: never report the ECE of the examples that chose.

    Args:
        logits_NK: finite, any scale, float32 or float64.
        labels_N: class indices.
        by: "nll" or "ece".
        bins: of the ECE.

    Returns:
        T with what it minimises and whether it is a minimum. Logits that are equal within each
        example (or differ by less than 1e-304) have none: T = 1, `at_edge`.

    Raises:
        ValueError: no examples, lengths differ, a label that is no class, a logit that is not
            finite, probabilities instead of logits, or another `by`.
        ArithmeticError: the slope is not 0 at what was found.

    Logits 0 and 4, right in 3 of 4: probabilities 1/4 and 3/4 are those of logits 0 and log 3.

    >>> logits, labels = np.array([[4.0, 0.0]] * 4), np.array([0, 0, 0, 1])
    >>> found = fit_temperature(logits, labels)
    >>> round(4 / found.value, 6), found.at_edge
    (1.098612, False)
    >>> fit_temperature(logits, np.array([0, 0, 0, 0])).at_edge
    True
    """
    logits_NK, labels_N = _checked(logits_NK, labels_N)
    if by == "nll":
        return _by_nll(logits_NK, labels_N)
    if by == "ece":
        return _by_ece(logits_NK, labels_N, bins)
    raise ValueError(f"by must be nll or ece, not {by!r}")


def halves(labels_N: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the examples with the classes in proportion: one to fit T on, one to report.

    1. Each class is shuffled and spread evenly over one order, of which the halves are beginning
       and end: a class differs by one example at most between them, as do the sizes.
    2. The same labels and seed give the same halves with every version of NumPy.

    Args:
        labels_N: class indices.
        seed: of the shuffles.

    Returns:
        Indices into `labels_N`, int64, ascending; of an odd N the second has one more.

    Raises:
        ValueError: fewer than two examples.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> [labels[half].tolist() for half in halves(labels)]
    [[0, 0, 1], [0, 0, 1]]
    """
    labels_N = array(labels_N)
    if len(labels_N) < 2:
        raise ValueError(f"{len(labels_N)} examples have no two halves")
    order_N = stratified_order(labels_N, seed)
    middle = len(order_N) // 2
    return np.sort(order_N[:middle]), np.sort(order_N[middle:])


def curve(
    logits_NK: np.ndarray, labels_N: np.ndarray, temperatures_T: np.ndarray, bins: int = BINS
) -> Curve:
    """NLL and ECE of logits / T at each of these T: Figure 4, and what the ECE fit minimises.

    Args:
        logits_NK: finite, any scale, float32 or float64.
        labels_N: class indices.
        temperatures_T: above 0, in any order.
        bins: of the ECE.

    Returns:
        NLL is infinite where logits / T is beyond float64.

    Raises:
        ValueError: as `fit_temperature`, or a temperature that is not finite and above 0.

    >>> curve(np.array([[np.log(9), 0.0]]), np.array([0]), np.array([0.5, 1.0])).ece.round(6)
    array([0.012195, 0.1     ])
    """
    logits_NK, labels_N = _checked(logits_NK, labels_N)
    temperatures_T = array(temperatures_T, dtype=np.float64)
    if not (np.isfinite(temperatures_T) & (temperatures_T > 0)).all():
        raise ValueError("temperatures must be finite and above 0")
    below_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    label_N = of_label(below_NK, labels_N)
    correct_N = logits_NK.argmax(axis=1) == labels_N
    found = np.empty((len(temperatures_T), 2))
    for i, temperature in enumerate(temperatures_T.tolist()):
        with np.errstate(over="ignore"):
            # The largest logit is 0 here: its probability is 1 / total.
            total_N = np.exp(below_NK / temperature).sum(axis=1)
            found[i, 0] = (np.log(total_N) - label_N / temperature).mean()
        found[i, 1] = ece_of(1 / total_N, correct_N, bins)
    return Curve(nll=found[:, 0], ece=found[:, 1])


def _by_nll(logits_NK: np.ndarray, labels_N: np.ndarray) -> Temperature:
    from scipy.optimize import brentq  # half a second, which other commands have no use for

    below_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    label_N = of_label(below_NK, labels_N)
    scale = -float(below_NK.mean())
    # Below it T would round to 0.
    if scale < REACH * np.finfo(np.float64).tiny:
        return Temperature(1.0, "nll", at_edge=True)

    def slope(log_temperature: float) -> float:
        """d NLL / d log T: (label's logit - mean logit under p) / T."""
        temperature = math.exp(log_temperature)
        weight_NK = np.exp(below_NK / temperature)
        mean_N = (weight_NK * below_NK).sum(axis=1) / weight_NK.sum(axis=1)
        return float((label_N - mean_N).mean()) / temperature

    coldest, hottest = math.log(scale / REACH), math.log(scale * REACH)
    if not label_N.any():
        return Temperature(math.exp(coldest), "nll", at_edge=True)
    if slope(coldest) >= 0:
        # A label that is not the largest makes NLL rise again towards 0, though maybe only where
        # the closest logits are told apart.
        closest = -float(below_NK.max(initial=-math.inf, where=below_NK < 0))
        coldest, hottest = math.log(closest / REACH), coldest
    if slope(hottest) <= 0:
        return Temperature(math.exp(hottest), "nll", at_edge=True)
    best = float(brentq(slope, coldest, hottest, xtol=1e-14))
    if abs(slope(best)) > FLAT:
        raise ArithmeticError(f"NLL has slope {slope(best):.1e} at T = {math.exp(best)}")
    return Temperature(math.exp(best), "nll", at_edge=False)


def _by_ece(logits_NK: np.ndarray, labels_N: np.ndarray, bins: int) -> Temperature:
    if np.ptp(logits_NK, axis=1).max() == 0:
        return Temperature(1.0, "ece", at_edge=True)
    ece_T = curve(logits_NK, labels_N, GRID, bins).ece
    last = len(GRID) - 1
    equals = np.flatnonzero(ece_T <= ece_T.min() + EQUAL)
    best = int(equals[np.abs(equals - last // 2).argmin()])
    return Temperature(float(GRID[best]), "ece", at_edge=best in (0, last))


def _checked(logits_NK: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits_NK, labels_N = labelled(logits_NK, labels_N, "logits")
    logits_NK = logits_NK.astype(np.float64, copy=False)
    if not np.isfinite(logits_NK).all():
        raise ValueError("logits that are not finite: leave diverged runs out first")
    if (logits_NK >= 0).all() and np.allclose(logits_NK.sum(axis=1), 1, rtol=0, atol=1e-5):
        raise ValueError("these are probabilities: T divides logits")
    return logits_NK, labels_N
