"""Losses and metrics at the ends of what numbers can be, against float64, fractions and mpmath.

LSEXP_FAULTS multiplies how many cases are tried.
"""

import itertools
import math
import os
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from scipy.stats import t as student

from lsexp.analysis import calibration, collapse, information, projections, selective, statistics
from lsexp.analysis.distillation import gamma, wrong_class_agreement
from lsexp.analysis.temperature import GRID, REACH, curve, fit_temperature
from lsexp.config import LossConfig
from lsexp.errors import UserError
from lsexp.losses import distillation_loss, smooth_labels, smoothed_cross_entropy, targets
from lsexp.training.evaluate import accuracy_and_nll

MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).smallest_subnormal)
INF = math.inf

TRIED = int(os.environ.get("LSEXP_FAULTS", 1))
mpmath.mp.dps = 40


def tries(count):
    return settings(max_examples=count * TRIED, deadline=None, derandomize=True)


@st.composite
def batches(draw, scales=(0.0, TINY, 1e-3, 1.0, 30.0, 1e4, 1e30), classes=(2, 3, 10, 1000)):
    """Logits [N, K] of float32 and labels: at random, with ties, all equal, or with one far off."""
    rng = np.random.RandomState(draw(st.integers(0, 10**6)))
    K, N = draw(st.sampled_from(classes)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["normal", "ties", "one far", "equal"]))
    logits = rng.standard_normal((N, K))
    if kind == "ties":
        logits = np.round(logits)
    elif kind == "one far":
        logits[:, rng.randint(K)] *= draw(st.sampled_from([-1e4, 1e4]))
    elif kind == "equal":
        logits = np.repeat(logits[:, :1], K, axis=1)
    logits = (draw(st.sampled_from(scales)) * logits).astype(np.float32)
    labels = draw(st.sampled_from(["any", "first", "last"]))
    chosen = {"any": rng.randint(K, size=N), "first": logits.argmax(1), "last": logits.argmin(1)}
    return logits, chosen[labels]


def log_softmax(logits):
    """Float64, each sum without rounding."""
    logits = np.asarray(logits, np.float64)
    below = logits - logits.max(axis=1, keepdims=True)
    return below - np.log([[math.fsum(row)] for row in np.exp(below)])


def precise(logits):
    """Log-probabilities of mpmath, a list for each example."""
    found = []
    for row in np.asarray(logits, np.float64):
        below = [mpmath.mpf(z) - mpmath.mpf(row.max()) for z in row.tolist()]
        total = mpmath.log(mpmath.fsum(mpmath.exp(z) for z in below))
        found.append([z - total for z in below])
    return found


def average(values):
    values = list(values)
    return float(sum(values) / len(values))


def loss_and_gradient(loss, logits):
    logits = logits.detach().clone().requires_grad_()
    found = loss(logits)
    found.backward()
    return found.item(), logits.grad.double().numpy()


# Cross-entropy


def smoothing(eps, spread, classes):
    """Targets' eps over all classes, and what is asked of the label and of each other class."""
    found = targets(LossConfig(eps=eps, spread=spread), classes)
    share = Fraction(eps)
    others = share if spread == "others" else share * (classes - 1) / classes
    return found.eps_uniform, float(1 - others), float(others / (classes - 1))


@tries(150)
@given(
    batches(),
    st.sampled_from([0.0, 1e-6, 0.1, 0.49, 0.999]),
    st.sampled_from(["uniform", "others"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_cross_entropy_and_its_gradient_are_those_of_float64(batch, eps, spread, dtype):
    logits, labels = torch.from_numpy(batch[0]).to(dtype), torch.from_numpy(batch[1])
    N, K = logits.shape
    eps = min(eps, 0.998 * (K - 1) / K) if spread == "others" else eps
    eps_uniform, true, other = smoothing(eps, spread, K)
    found, slope = loss_and_gradient(
        lambda z: smoothed_cross_entropy(z, labels, eps_uniform), logits
    )
    log_p = log_softmax(logits.double())
    target = np.full((N, K), other)
    target[np.arange(N), labels] = true
    expected = -(target * log_p).sum(1).mean()
    # Float32 has log(1 + x) to 6e-8 only, however small x.
    rel, within = (1e-11, 1e-14) if dtype == torch.float64 else (1e-5, 1e-6)
    assert found == pytest.approx(expected, rel=rel, abs=within)
    assert found >= -(target * np.log(np.where(target > 0, target, 1))).sum(1).mean() - within
    # A gradient has the type of its logits: bfloat16 has eight bits.
    rel = 2**-8 if dtype == torch.bfloat16 else rel
    np.testing.assert_allclose(slope, (np.exp(log_p) - target) / N, rtol=rel, atol=within)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_of_the_largest_numbers_is_never_nan(eps, dtype):
    most = torch.finfo(dtype).max
    for row in ([most, -most, 0.0], [most] * 3, [-most] * 3, [most, most, -most], [most, 1.0, 1.0]):
        for label in range(3):
            found, slope = loss_and_gradient(
                lambda z, k=label: smoothed_cross_entropy(z, torch.tensor([k]), eps),
                torch.tensor([row], dtype=dtype),
            )
            assert found >= 0
            assert np.isfinite(slope).all()
            if len(set(row)) == 1:
                assert found == pytest.approx(math.log(3), rel=1e-6)


def test_a_logit_of_minus_infinity_is_a_class_of_probability_zero():
    logits = torch.tensor([[1.0, -INF, 0.0], [0.0, -INF, -INF]])
    found, slope = loss_and_gradient(
        lambda z: smoothed_cross_entropy(z, torch.tensor([2, 0]), 0.0), logits
    )
    assert found == pytest.approx(math.log1p(math.e) / 2, rel=1e-6)
    p = 1 / (1 + math.e)
    np.testing.assert_allclose(slope, [[(1 - p) / 2, 0, (p - 1) / 2], [0, 0, 0]], atol=1e-7)
    for eps, labels in ((0.1, [2, 0]), (0.0, [1, 0])):
        found, slope = loss_and_gradient(
            lambda z, e=eps, k=labels: smoothed_cross_entropy(z, torch.tensor(k), e), logits
        )
        assert found == INF
        assert np.isfinite(slope).all()


@tries(40)
@given(batches(scales=(1.0, 30.0)), st.sampled_from([0.0, 0.1, 0.9]), st.integers(0, 99))
def test_losses_mind_neither_a_constant_nor_the_order_of_classes_and_examples(batch, eps, seed):
    # Multiples of 1/64 below 100 have room in float32 for 10,000 more.
    logits = torch.from_numpy(np.round(np.clip(batch[0], -99, 99) * 64) / 64)
    labels = torch.from_numpy(batch[1])
    teacher = logits.flip(0).roll(1, 1)
    rng = np.random.RandomState(seed)
    N, K = logits.shape
    order, names = torch.from_numpy(rng.permutation(N)), torch.from_numpy(rng.permutation(K))
    place = names.argsort()
    for loss in (
        lambda z, v, k: smoothed_cross_entropy(z, k, eps),
        lambda z, v, k: distillation_loss(z, v, k, beta=0.5, eps_uniform=eps),
    ):
        expected = pytest.approx(loss(logits, teacher, labels).item(), rel=1e-5, abs=1e-6)
        for by in (-1e4, 1e4):
            assert loss(logits + by, teacher - by, labels).item() == expected
        moved = loss(logits[order][:, names], teacher[order][:, names], place[labels[order]])
        assert moved.item() == expected


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("spread", ["uniform", "others"])
@pytest.mark.parametrize("eps", [0.0, 5e-324, 1e-300, 1e-9, 0.1, 0.4999999, 0.9, 0.998, 0.999])
def test_targets_are_those_of_fractions(classes, spread, eps):
    if spread == "others" and eps >= (classes - 1) / classes:
        with pytest.raises(UserError, match="below"):
            targets(LossConfig(eps=eps, spread=spread), classes)
        return
    found = targets(LossConfig(eps=eps, spread=spread), classes)
    _, true, other = smoothing(eps, spread, classes)
    assert found.true == pytest.approx(true, rel=1e-13)
    assert found.other == pytest.approx(other, rel=1e-13, abs=1e-323)
    assert found.true > found.other
    assert found.logit_gap is None or found.logit_gap > 0
    rows = smooth_labels(torch.arange(classes), classes, found.eps_uniform).double()
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)  # a thousand float32
    assert rows.diagonal().numpy() == pytest.approx(true, abs=1e-6)


# Distillation


@tries(150)
@given(
    batches(),
    batches(),
    st.sampled_from([0.05, 0.5, 1.0, 4.0, 100.0]),
    st.sampled_from(["1", "tied"]),
    st.booleans(),
    st.sampled_from([0.001, 0.4, 1.0]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_distillation_and_its_gradient_are_those_of_float64(
    batch, other, temperature, own, squared, beta, dtype
):
    logits, labels = torch.from_numpy(batch[0]).to(dtype), torch.from_numpy(batch[1])
    N, K = logits.shape
    teacher = torch.from_numpy(np.resize(other[0], (N, K))).to(dtype)
    found, slope = loss_and_gradient(
        lambda z: distillation_loss(
            z,
            teacher,
            labels,
            temperature=temperature,
            student_temperature=own,
            t_squared=squared,
            beta=beta,
            eps_uniform=0.1,
        ),
        logits,
    )
    # Quotients as float32 rounds them, which is all the rounding that may be felt: at 1e30 what
    # gets lost there is 1e23.
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    divisor = temperature if own == "tied" else 1.0
    log_p = log_softmax((logits.to(exact) / divisor).double())
    soft = np.exp(log_softmax((teacher.to(exact) / temperature).double()))
    factor = temperature**2 if squared else 1.0
    matched = -(soft * log_p).sum(1).mean() * factor
    hard = smoothed_cross_entropy(logits.double(), labels, 0.1).item()
    # exp(-80) in float32 is exact to 80 * 6e-8 only.
    rel, within = (1e-11, 1e-13) if dtype == torch.float64 else (2e-5, 2e-6)
    expected = beta * matched + (1 - beta) * hard
    assert found == pytest.approx(expected, rel=rel, abs=within * max(1, factor))
    entropy = -(soft * np.log(np.where(soft > 0, soft, 1))).sum(1).mean()
    assert matched >= factor * (entropy - 1e-12)
    target = np.full((N, K), 0.1 / K)
    target[np.arange(N), labels] += 0.9
    expected = beta * factor / divisor * (np.exp(log_p) - soft)
    expected += (1 - beta) * (np.exp(log_softmax(logits.double())) - target)
    rel = 2**-8 if dtype == torch.bfloat16 else rel
    within *= max(1, factor / divisor)
    np.testing.assert_allclose(slope, expected / N, rtol=rel, atol=within)


@tries(60)
@given(batches(), batches(), st.sampled_from([0.001, 0.6, 1.0]))
def test_matched_logits_are_those_of_float64_or_infinite_with_a_finite_gradient(batch, other, beta):
    logits, labels = torch.from_numpy(batch[0]), torch.from_numpy(batch[1])
    teacher = torch.from_numpy(np.resize(other[0], logits.shape))
    found, slope = loss_and_gradient(
        lambda z: distillation_loss(z, teacher, labels, match="logits", beta=beta), logits
    )
    gap = logits.double() - teacher.double()
    hard, hard_slope = loss_and_gradient(
        lambda z: smoothed_cross_entropy(z, labels, 0.0), logits.double()
    )
    squares = beta * (gap**2).sum(1).mean().item() / 2
    expected = squares + (1 - beta) * hard
    if expected < 1e37:
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    elif expected > 1e40:
        assert found == INF
    expected = beta * gap.numpy() / len(gap) + (1 - beta) * hard_slope
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("own", ["1", "tied"])
def test_sure_teachers_and_teachers_without_some_classes(temperature, own):
    keys = {"temperature": temperature, "student_temperature": own}
    student, label = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([0])
    log_p = log_softmax(student / (temperature if own == "tied" else 1))
    for teacher in ([1e30, -1e30, 0.0], [0.0, -INF, -INF]):
        found = distillation_loss(student, torch.tensor([teacher]), label, **keys).item()
        assert found == pytest.approx(-log_p[0, 0], rel=1e-5)
    equal = torch.full((1, 3), 1e30)
    found = distillation_loss(student, equal, label, **keys).item()
    assert found == pytest.approx(-log_p.mean(), rel=1e-5)
    assert distillation_loss(equal, equal, label, **keys).item() == pytest.approx(math.log(3))


# Accuracy, NLL, Brier score


@tries(100)
@given(batches())
@example((np.array([[MAX, -MAX, 0.0], [-MAX] * 3, [MAX] * 3], np.float32), np.array([1, 2, 0])))
@example((np.array([[0.0, -INF], [-INF, 3.0]], np.float32), np.array([0, 1])))
@example((np.array([[TINY, 0.0], [0.0, 110.0]], np.float32), np.array([0, 1])))
def test_scores_are_those_of_forty_digits(batch):
    logits, labels = batch
    N, K = logits.shape
    log_p = precise(logits)
    p = [[mpmath.exp(z) for z in row] for row in log_p]
    found = calibration.softmax(logits)
    np.testing.assert_allclose(found, np.array(p, float), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-13)
    scores = calibration.scores(logits, labels)
    # log(1 + x) and 1 - p are known to 1e-16, however small.
    expected = average(-row[k] for row, k in zip(log_p, labels, strict=True))
    assert scores["nll"] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert scores["nll"] >= 0
    squares = [
        mpmath.fsum((q - (j == k)) ** 2 for j, q in enumerate(row))
        for row, k in zip(p, labels, strict=True)
    ]
    assert scores["brier"] == pytest.approx(average(squares), rel=1e-12, abs=1e-15)
    assert calibration.brier(found.astype(np.float32), labels) >= -1e-6
    first = [row.index(max(row)) for row in logits.tolist()]
    right = [j == k for j, k in zip(first, labels, strict=True)]
    assert scores["accuracy"] == sum(right) / N
    assert accuracy_and_nll(torch.from_numpy(logits), torch.from_numpy(labels)) == (
        scores["accuracy"],
        pytest.approx(expected, rel=1e-12, abs=1e-15),
    )
    softness = K / (K - 1) * average(1 - row[k] for row, k in zip(p, labels, strict=True))
    assert gamma(logits, labels) == pytest.approx(softness, rel=1e-9, abs=1e-15)


@tries(40)
@given(batches(scales=(1.0, 30.0, 1e4)), st.integers(0, 99))
def test_scores_mind_neither_a_constant_nor_the_order_nor_a_class_that_nobody_predicts(batch, seed):
    logits, labels = batch[0].astype(np.float64), batch[1]
    rng = np.random.RandomState(seed)
    order, names = rng.permutation(len(logits)), rng.permutation(logits.shape[1])
    expected = calibration.scores(logits, labels)
    # Adding 10,000 rounds a difference by 2e-12, and ties may break.
    close = {name: pytest.approx(value, rel=1e-9, abs=1e-11) for name, value in expected.items()}
    assert calibration.scores(np.round(logits, 3) + 1e4, labels) == pytest.approx(
        calibration.scores(np.round(logits, 3), labels), rel=1e-8, abs=1e-10
    )
    assert calibration.scores(logits[order], labels[order]) == close
    nobody = np.column_stack([logits, logits.min(axis=1) - 1e4])
    assert calibration.scores(nobody, labels) == close
    moved = calibration.scores(logits[:, names], names.argsort()[labels])
    top = np.sort(logits, axis=1)[:, -2:]
    if (top[:, 0] < top[:, 1]).all():
        assert moved == close
    assert (moved["nll"], moved["brier"]) == (close["nll"], close["brier"])


def test_an_infinite_nll_and_what_are_no_logits():
    logits = np.array([[0.0, -INF, 1.0]])
    assert calibration.nll(logits, np.array([1])) == INF
    assert accuracy_and_nll(torch.from_numpy(logits), torch.tensor([1])) == (0, INF)
    assert calibration.brier(calibration.softmax(logits), np.array([1])) > 1
    for row in ([math.nan, 0.0], [INF, 0.0], [-INF, -INF]):
        for wrong in (np.array([row]), np.array([[0.0, 0.0], row])):
            for function in (calibration.nll, calibration.scores):
                with pytest.raises(ValueError, match="not finite"):
                    function(wrong, np.zeros(len(wrong), int))
            with pytest.raises(ValueError, match="not finite"):
                calibration.softmax(wrong)
    with pytest.raises(ValueError, match="no examples"):
        calibration.scores(np.empty((0, 3)), np.array([], int))


# ECE and its relatives


def binned(confidence, correct, bins):
    """Of each bin that is not empty: how many examples, right ones, and the gap of the sums."""
    found = {}
    for c, r in zip(confidence, correct, strict=True):
        b = next(k for k in range(1, bins + 1) if c <= k / bins)
        found.setdefault(b, []).append((Fraction(c), int(r)))
    return {
        b: (len(part), sum(r for _, r in part), sum(r - c for c, r in part))
        for b, part in found.items()
    }


CONFIDENCES = st.one_of(
    st.floats(0, 1),
    st.sampled_from([0.0, 5e-324, 1e-17, 0.1, 0.5, np.nextafter(1, 0), 1.0]),
    st.tuples(st.integers(1, 60), st.integers(1, 60)).map(lambda k: min(k) / max(k)),
)


@tries(200)
@given(
    st.lists(st.tuples(CONFIDENCES, st.booleans()), min_size=1, max_size=12),
    st.sampled_from([1, 2, 6, 10, 15, 49, 1000]),
)
@example([(k / 6, k % 2 == 0) for k in range(7)], 6)
@example([(k / 49, k % 2 == 0) for k in range(50)], 49)
def test_ece_and_its_relatives_are_those_of_fractions(pairs, bins):
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    parts = binned(*zip(*pairs, strict=True), bins)
    N = len(pairs)
    table = calibration.reliability(confidence, correct, bins)
    assert {int(b) + 1: table.n[b] for b in np.flatnonzero(table.n)} == {
        b: n for b, (n, _, _) in parts.items()
    }
    for b, (n, right, gap) in parts.items():
        assert table.accuracy[b - 1] == pytest.approx(right / n)
        assert table.confidence[b - 1] == pytest.approx(float((right - gap) / n), abs=1e-15)
    expected = float(sum(abs(gap) for _, _, gap in parts.values()) / N)
    assert calibration.ece_of(confidence, correct, bins) == pytest.approx(expected, abs=1e-14)
    expected = float(max(abs(gap) / n for n, _, gap in parts.values()))
    assert calibration.mce(confidence, correct, bins) == pytest.approx(expected, abs=1e-14)
    expected = float(-sum(gap for _, _, gap in parts.values()) / N)
    assert calibration.confidence_gap(confidence, correct) == pytest.approx(expected, abs=1e-14)
    debiased = 0
    for n, right, gap in parts.values():
        gap, variance = mpmath.mpf(gap.numerator) / gap.denominator, mpmath.mpf(right * (n - right))
        noisy = abs(gap)
        if variance:
            s = mpmath.sqrt(variance / n)
            x = gap / (s * mpmath.sqrt(2))
            noisy = s * mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-x * x) + gap * mpmath.erf(x)
        debiased += (2 * abs(gap) - noisy) / N
    found = calibration.debiased_ece(confidence, correct, bins)
    assert found == pytest.approx(float(debiased), abs=1e-13)
    low, high = calibration.sampling_band(confidence, bins)
    seen = table.n > 0
    assert ((low[seen] >= 0) & (low[seen] <= high[seen]) & (high[seen] <= 1)).all()
    assert 0 <= calibration.adaptive_ece(confidence, correct, bins) <= 1
    assert 0 <= calibration.ece_floor(confidence, bins) <= 0.5


@pytest.mark.parametrize(
    "confidence", [0.0, 5e-324, 1e-17, 1e-3, 0.3, 0.5, 1 - 1e-3, 1 - 2**-53, 1]
)
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_the_floor_is_the_mean_deviation_of_a_binomial_variable(confidence, n):
    p = Fraction(confidence)
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    expected = float(sum(chance * abs(k - n * p) for k, chance in enumerate(chances)) / n)
    found = calibration.ece_floor(np.full(n, confidence))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)
    # Beside those that are never right, the same bin.
    assert calibration.ece_floor(np.array([confidence, 0.0]), bins=1) <= 0.5


@pytest.mark.parametrize("k", range(1, 12))
@pytest.mark.parametrize("bins", [6, 7, 11, 12, 100])
def test_an_edge_is_of_the_bin_below_for_any_number_of_bins(k, bins):
    edge = min(k, bins) / bins
    found = calibration.reliability(np.array([edge, np.nextafter(edge, 0)]), np.ones(2), bins)
    assert found.n[min(k, bins) - 1] == 2
    assert found.high[min(k, bins) - 1] == edge


@pytest.mark.parametrize("confidence", [[], [math.nan], [1.1], [-1e-9]])
def test_what_are_no_confidences_has_no_ece_and_no_floor(confidence):
    confidence = np.array(confidence)
    for function in (calibration.ece_floor, calibration.sampling_band):
        with pytest.raises(ValueError, match="confidences"):
            function(confidence)
    with pytest.raises(ValueError, match="confidences"):
        calibration.ece_of(confidence, np.ones(len(confidence)))
    if len(confidence):
        with pytest.raises(ValueError, match="probabilities"):
            calibration.ece(confidence[:, None], np.array([0]))


@tries(40)
@given(batches(classes=(2, 3, 10)), st.sampled_from([1, 7, 15]))
def test_classwise_ece_is_that_of_fractions(batch, bins):
    logits, labels = batch
    p = calibration.softmax(logits)
    parts = [binned(p[:, k].tolist(), labels == k, bins) for k in range(p.shape[1])]
    expected = sum(abs(gap) for part in parts for _, _, gap in part.values()) / p.size
    found = calibration.classwise_ece(p, labels, bins)
    assert found == pytest.approx(float(expected), abs=1e-14)


# Temperature


def precise_slope(logits, labels, temperature):
    """d NLL / d log T."""
    found = 0
    for row, k in zip(np.asarray(logits, np.float64).tolist(), labels, strict=True):
        weights = [mpmath.exp((mpmath.mpf(z) - max(row)) / temperature) for z in row]
        mean = mpmath.fsum(w * z for w, z in zip(weights, row, strict=True)) / sum(weights)
        found += row[k] - mean
    return found


@tries(120)
@given(batches(classes=(2, 3, 10)))
@example((np.array([[1e30, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]), np.array([0, 0, 0, 0])))
@example((np.array([[1e6, 0.0], [4.0, 0.0], [4.0, 4.0], [4.0, 0.0]]), np.array([0, 1, 0, 0])))
@example((np.array([[MAX, -MAX], [4.0, 0.0]]), np.array([1, 0])))
@example((np.array([[1e-300, 0.0]]), np.array([0])))
@example((np.array([[5e-324, 0.0], [5e-324, 0.0]]), np.array([0, 1])))
def test_a_fitted_temperature_is_the_minimum_or_says_that_it_is_none(batch):
    logits, labels = batch
    assume((logits < 0).any() or (np.abs(logits.sum(axis=1) - 1) > 1e-4).any())  # probabilities
    found = fit_temperature(logits, labels)
    assert 0 < found.value < INF
    assert curve(logits, labels, np.array([found.value])).nll[0] >= 0
    below = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    scale = -below.mean()
    label = below[np.arange(len(labels)), labels]
    if not found.at_edge:
        assert precise_slope(logits, labels, found.value * (1 - 1e-6)) < 0
        assert precise_slope(logits, labels, found.value * (1 + 1e-6)) > 0
        assert (label < 0).any()
    elif scale < REACH * np.finfo(float).tiny:
        assert found.value == 1
    elif not label.any():
        assert found.value == pytest.approx(scale / REACH)
    else:
        assert found.value == pytest.approx(scale * REACH)
        assert precise_slope(logits, labels, found.value) <= 1e-12 * scale
    by_ece = fit_temperature(logits, labels, by="ece")
    assert by_ece.value in GRID
    assert by_ece.at_edge == (by_ece.value in (GRID[0], GRID[-1]) or not np.ptp(logits, 1).any())


def test_a_far_larger_example_does_not_hide_the_minimum():
    logits = np.tile([4.0, 0.0], (100, 1))
    labels = (np.arange(100) < 25).astype(int)
    expected = fit_temperature(logits, labels).value
    for far in (1e6, 1e30, MAX):
        found = fit_temperature(np.vstack([logits, [[far, 0.0]]]), np.append(labels, 0))
        assert (found.value, found.at_edge) == (pytest.approx(expected, rel=1e-12), False)
        wrong = fit_temperature(np.vstack([logits, [[far, 0.0]]]), np.append(labels, 1))
        assert wrong.at_edge
        assert wrong.value > far


def test_the_curve_at_extreme_temperatures_has_no_nan():
    logits, labels = np.array([[1e30, 0.0], [3.0, 1.0]]), np.array([1, 0])
    temperatures = np.array([5e-324, 1e-300, 1.0, 1e30, 1e300])
    found = curve(logits, labels, temperatures)
    assert found.nll[:2].tolist() == [INF, INF]
    # At 1e30 the first misses by log(1 + e), at 1e300 both are at log 2.
    expected = [5e29, (math.log1p(math.e) + math.log(2)) / 2, math.log(2)]
    assert found.nll[2:] == pytest.approx(expected)
    assert found.ece[-1] == pytest.approx(0, abs=1e-12)
    sure = curve(logits, np.array([0, 0]), temperatures)
    assert sure.nll[:2].tolist() == [0, 0]


# Selective classification


@tries(60)
@given(batches(classes=(2, 3, 10, 1000)))
@example((np.array([[MAX, -MAX, 0.0], [MAX] * 3], np.float32), np.array([0, 0])))
def test_scores_of_confidence_are_those_of_forty_digits(batch):
    logits = np.asarray(batch[0], np.float64)
    found = selective.max_probability_score(batch[0])
    normed = {p: selective.normalised_score(batch[0], p) for p in (1, 2, 9)}
    for i, row in enumerate(logits.tolist()):
        best = max(range(len(row)), key=row.__getitem__)
        rest = [mpmath.exp(mpmath.mpf(z) - max(row[:best] + row[best + 1 :])) for z in row]
        rest = mpmath.fsum(rest[:best] + rest[best + 1 :])
        second = max(row[:best] + row[best + 1 :])
        expected = mpmath.mpf(row[best]) - second - mpmath.log(rest)
        assert found[i] == pytest.approx(float(expected), rel=1e-12, abs=1e-13)
        mean = mpmath.fsum(row) / len(row)
        for p, scores in normed.items():
            norm = mpmath.fsum(abs(z - mean) ** p for z in row) ** (mpmath.mpf(1) / p)
            expected = (row[best] - mean) / norm if max(row) > min(row) else 0
            assert scores[i] == pytest.approx(float(expected), rel=1e-11, abs=1e-14)
            assert 0 <= scores[i] <= 1


@tries(60)
@given(
    st.lists(
        st.tuples(st.sampled_from([-INF, -MAX, 0.0, TINY, 1.0, MAX, INF]), st.booleans()),
        min_size=1,
        max_size=20,
    )
)
def test_risk_and_its_area_are_those_of_fractions(pairs):
    score, correct = (np.array(column) for column in zip(*pairs, strict=True))
    risks, wrong = [], Fraction(0)
    for value in sorted(set(score.tolist()), reverse=True):
        group = [not right for s, right in pairs if s == value]
        for _ in group:
            wrong += Fraction(sum(group), len(group))
            risks.append(wrong / (len(risks) + 1))
    found = selective.risk_coverage(score, correct)
    np.testing.assert_allclose(found.risk, [float(r) for r in risks], atol=1e-14)
    expected = float(sum(risks) / len(risks))
    assert selective.aurc(score, correct) == pytest.approx(expected, abs=1e-14)
    assert selective.excess_aurc(score, correct) >= -1e-14


# Teachers' ranks


@tries(60)
@given(batches(classes=(3, 10)), batches(classes=(3, 10)), st.integers(0, 99))
def test_ranks_agree_as_scipys_and_ties_have_no_order(batch, other, seed):
    logits, labels = batch
    N, K = logits.shape
    others = np.resize(other[0], (N, K))
    expected = []
    for a, b, k in zip(logits, others, labels, strict=True):
        a, b = np.delete(a, k), np.delete(b, k)
        vary = np.ptp(a) > 0 and np.ptp(b) > 0
        expected.append(spearmanr(a, b).statistic if vary else 0.0)
    found = wrong_class_agreement(logits, others, labels)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)
    names = np.random.RandomState(seed).permutation(K)
    moved = wrong_class_agreement(logits[:, names], others[:, names], names.argsort()[labels])
    assert moved == pytest.approx(found, abs=1e-12)


# Information


@tries(60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([TINY, 1e-30, 1.0, 1e4, 1e30, MAX / 10]),
    st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    st.integers(2, 8),
)
def test_information_is_that_of_forty_digits(seed, scale, noise, N):
    rng = np.random.RandomState(seed)
    mu = rng.standard_normal(N)[:, None]
    means, fresh = (scale * (mu + noise * rng.standard_normal((N, m))) for m in (4, 2))
    classes = rng.randint(2, size=N)
    found = information.estimate(means, fresh, classes)
    mu = [mpmath.fsum(row) / 4 for row in means.tolist()]
    pairs = [(x, mpmath.mpf(y)) for x in range(N) for y in fresh[x].tolist()]
    variance = mpmath.fsum((y - mu[x]) ** 2 for x, y in pairs) / len(pairs)

    def inside(allowed):
        total = 0
        for x, y in pairs:
            among = [mpmath.exp(-((y - mu[o]) ** 2) / (2 * variance)) for o in allowed(x)]
            total -= (y - mu[x]) ** 2 / (2 * variance) + mpmath.log(sum(among) / len(among))
        return float(total / len(pairs))

    if noise:
        total = inside(lambda x: range(N))
        within = inside(lambda x: [o for o in range(N) if classes[o] == classes[x]])
        assert (found.total, found.within) == pytest.approx((total, within), rel=1e-9, abs=1e-9)
    else:
        assert found.total == pytest.approx(math.log(N))
    assert found.between + found.within == pytest.approx(found.total, abs=1e-12)
    assert found.total <= math.log(N) + 1e-12
    assert found.lower <= found.upper + 1e-12
    own = information.with_own_variances(means, fresh, classes)
    assert own <= math.log(N) + 1e-12


@pytest.mark.parametrize("value", [0.0, TINY, 0.1, -1e4, 1e30, MAX])
def test_constant_outputs_tell_nothing(value):
    means, fresh = np.full((6, 5), value), np.full((6, 2), value)
    classes = np.arange(6) % 2
    found = information.estimate(means, fresh, classes)
    assert np.array(found) == pytest.approx(0, abs=1e-12)
    assert information.with_own_variances(means, fresh, classes) == pytest.approx(0, abs=1e-12)
    assert information.nearest_neighbours(means) is None


def test_neighbours_do_not_mind_scale_and_refuse_what_is_not_finite():
    draws = np.random.RandomState(0).standard_normal((5, 12))
    expected = information.nearest_neighbours(draws)
    for scale in (2.0**-140, 2.0**100):
        assert information.nearest_neighbours(scale * draws) == expected
    for bad in (math.nan, INF):
        draws[2, 3] = bad
        with pytest.raises(ValueError, match="not finite"):
            information.nearest_neighbours(draws)


# Collapse


# From the smallest number of float32 to near its largest.
SCALES = [2.0**-149, 2.0**-60, 2.0**60, 2.0**124]


@pytest.mark.parametrize("scale", SCALES)
def test_collapse_is_the_same_at_any_scale_of_float32(scale):
    rng = np.random.RandomState(0)
    features = rng.randint(-8, 9, size=(30, 4)).astype(np.float32)
    labels, weight = np.arange(30) % 3, rng.standard_normal((3, 4))
    for measure in (
        collapse.nc1,
        collapse.nc2,
        lambda f, k: collapse.nc3(f, k, scale * weight),
        collapse.class_separation,
    ):
        found = measure(np.float32(scale) * features, labels)
        assert found == pytest.approx(measure(features, labels), rel=1e-9)


@tries(60)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 3)), min_size=2, max_size=15),
    st.sampled_from(SCALES),
)
def test_variability_along_a_line_is_that_of_fractions(pairs, scale):
    groups = {}
    for value, k in pairs:
        groups.setdefault(k, []).append(Fraction(value))
    features = scale * np.array([[float(value)] for value, _ in pairs])
    labels = np.array([k for _, k in pairs])
    means = [sum(g) / len(g) for g in groups.values()]
    if len(set(means)) < 2:
        with pytest.raises(ValueError, match=r"two are needed|all alike"):
            collapse.nc1(features, labels)
        return
    inside = sum(sum((x - sum(g) / len(g)) ** 2 for x in g) / len(g) for g in groups.values())
    center = sum(means) / len(means)
    between = sum((m - center) ** 2 for m in means)
    expected = float(inside / between / len(means))
    assert collapse.nc1(features, labels) == pytest.approx(expected, rel=1e-9, abs=1e-20)
    within, apart = projections.scatter(features, labels)
    assert within == pytest.approx(float(inside / len(means)) * scale**2, rel=1e-9)
    assert apart == pytest.approx(float(between / len(means)) * scale**2, rel=1e-9)


def test_separation_of_features_without_length_and_of_single_examples():
    labels = np.array([0, 0, 1, 1])
    assert collapse.class_separation(np.zeros((4, 3)), labels) == pytest.approx(0)
    # Two classes of one example each, opposite: nothing within.
    assert collapse.class_separation(np.array([[1.0], [-MAX]]), np.array([0, 1])) == 1
    for bad in (math.nan, INF):
        features = np.eye(4)
        features[0, 0] = bad
        for measure in (
            collapse.nc1,
            collapse.nc2,
            lambda f, k: collapse.nc3(f, k, np.eye(4)),
            collapse.class_separation,
        ):
            with pytest.raises(ValueError, match="not finite"):
                measure(features, labels)


# Projections


def test_a_plane_of_templates_at_any_scale():
    rng = np.random.RandomState(0)
    three, points = rng.standard_normal((3, 6)), rng.standard_normal((9, 6))
    plane = projections.plane_of(three)
    seen = projections.principal_plane(three, points)
    for scale in SCALES:
        large = projections.plane_of(scale * three)
        np.testing.assert_allclose(large.basis_E2, plane.basis_E2, atol=1e-12)
        np.testing.assert_allclose(
            projections.project(large, scale * points) / scale,
            projections.project(plane, points),
            atol=1e-12,
        )
        assert projections.kept(large, scale * points) == pytest.approx(
            projections.kept(plane, points)
        )
        np.testing.assert_allclose(
            projections.principal_plane(scale * three, scale * points).basis_E2,
            seen.basis_E2,
            atol=1e-9,
        )


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_templates_that_are_collinear_but_for_rounding_have_no_plane(offset):
    rng = np.random.RandomState(1)
    along = rng.standard_normal(8)
    for places in ([0, 0.1, 0.7], [0, 0, 1], [0, 1, 1], [0, 1, 0]):
        with pytest.raises(ValueError, match="on a line"):
            projections.plane_of(offset + np.outer(places, along))
    with pytest.raises(ValueError, match="less than three"):
        projections.principal_plane(np.outer([0.1, 0.7, 3], along), np.ones((2, 8)))


def test_few_points_and_features_of_zero_have_a_picture():
    three = np.eye(3, 5)
    for points in (np.zeros((1, 5)), np.zeros((4, 5)), np.ones((1, 5))):
        plane = projections.principal_plane(three, points)
        np.testing.assert_allclose(plane.basis_E2.T @ plane.basis_E2, np.eye(2), atol=1e-12)
        assert projections.kept(plane, points) == 0
        assert np.isfinite(projections.project(plane, points)).all()
    inside = np.random.RandomState(0).standard_normal((300, 10, 2))
    plane = projections.plane_of(three)
    assert max(projections.kept(plane, part @ plane.basis_E2.T) for part in inside) == 1


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e15, 1e38])
def test_distances_are_those_of_fractions(scale):
    rng = np.random.RandomState(2)
    points, templates = ((scale * rng.standard_normal((4, 7))).astype(np.float32) for _ in "ab")
    templates[0] = points[0]
    found = projections.distances(points, templates)
    for i, j in itertools.product(range(4), repeat=2):
        squared = sum(
            (Fraction(float(a)) - Fraction(float(b))) ** 2
            for a, b in zip(points[i], templates[j], strict=True)
        )
        expected = float(mpmath.sqrt(mpmath.mpf(squared.numerator) / squared.denominator))
        # What is left of ||x||^2 - 2 x^T w + ||w||^2 for a point on its template.
        assert found[i, j] == pytest.approx(expected, rel=1e-9, abs=1e-7 * scale)


@pytest.mark.parametrize("scale", [TINY, 1e-20, 1e20, MAX / 10])
def test_tsne_of_small_and_large_features(scale):
    features = (scale * np.random.RandomState(0).randint(1, 9, size=(8, 3))).astype(np.float32)
    assert np.isfinite(projections.tsne(features)).all()


# Statistics


def exact_interval(values):
    n = len(values)
    values = [Fraction(v) for v in values]
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    quantile = float(student.ppf(0.975, n - 1))
    half = quantile * float(mpmath.sqrt(mpmath.mpf(variance.numerator) / variance.denominator / n))
    return float(mean), half


@tries(100)
@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=9),
    st.sampled_from([1e-30, 1e-9, 1e-3, 1.0, 1e30]),
    st.sampled_from([0, 1, 10**4]),
)
def test_intervals_over_seeds_are_those_of_fractions(whole, scale, offset):
    values = [scale * (offset + w / 1000) for w in whole]
    found = statistics.over_seeds(np.array(values))
    same = statistics.paired(np.array(values), np.zeros(len(values)))
    assert same.difference == found
    assert same.p is None or 0 < same.p <= 1
    if len(set(whole)) == 1:
        assert found[1:] == (None, None, len(whole), "seeds")
        assert found.value == pytest.approx(values[0], rel=1e-15)
        return
    mean, half = exact_interval(values)
    # The spread is a difference of numbers that were rounded.
    within = 1e-14 * max(map(abs, values))
    assert found.value == pytest.approx(mean, rel=1e-14, abs=within)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-9, abs=10 * within)
    rows = np.repeat(np.array(values)[:, None], 3, axis=1)
    assert statistics.over_both(rows)[:3] == pytest.approx(found[:3], rel=1e-9, abs=10 * within)
    assert statistics.over_examples(rows.T)[:3] == pytest.approx(found[:3], rel=1e-9)


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1.0])
def test_what_shows_no_spread_has_no_interval(scale):
    for values in (np.full(4, 0.1 * scale), scale * np.array([0.3])):
        assert statistics.over_seeds(values)[1:3] == (None, None)
        assert statistics.over_examples(values[None])[1:3] == (None, None)
        assert statistics.over_both(values[None])[1:3] == (None, None)
        assert statistics.over_both(values[:, None])[1:3] == (None, None)
    if scale < 1:  # whose squares are 0 in float64
        values = scale * np.array([1.0, 2, 3, 5, 8, 13])
        found = statistics.paired(values, values[::-1])
        assert (found.difference.low, found.difference.high) == (None, None)
        assert found.correlation is None
        assert 0 < found.p <= 1
        assert statistics.over_both(np.outer(values, [1, 2]))[1:3] == (None, None)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_means_that_agree_by_chance_are_no_certainty(n):
    # Each seed right on one example and each example by one seed.
    found = statistics.over_both(np.eye(n))
    assert found == (pytest.approx(1 / n), None, None, n, "both")
    assert statistics.verdict(found) == "inconclusive"


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_numbers_that_are_not_finite_are_refused(bad):
    for function in (statistics.over_examples, statistics.over_both):
        with pytest.raises(ValueError, match="not finite"):
            function(np.array([[0.5, bad]]))
    with pytest.raises(ValueError, match="not finite"):
        statistics.paired(np.array([bad]), np.array([0.5]))
    with pytest.raises(ValueError, match="not finite"):
        statistics.over_seeds(np.array([bad]))
    with pytest.raises(ValueError, match="p must"):
        statistics.holm([0.5, bad])
    for function in (statistics.accuracy_half_width, statistics.smallest_visible_difference):
        with pytest.raises(ValueError, match="examples"):
            function(bad, 10)


@pytest.mark.parametrize("n", [1, 10, 10**9])
@pytest.mark.parametrize("accuracy", [0.0, 5e-324, 0.5, 1 - 2**-53, 1.0])
def test_half_widths_are_wilsons_to_forty_digits(accuracy, n):
    z, p = mpmath.mpf(statistics.Z), mpmath.mpf(accuracy)
    expected = z / (1 + z**2 / n) * mpmath.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = statistics.accuracy_half_width(accuracy, n)
    assert found == pytest.approx(float(expected), rel=1e-12)
    assert 0 < found <= 0.5
    expected = float(z * mpmath.sqrt(p / n))
    assert statistics.smallest_visible_difference(accuracy, n) == pytest.approx(expected, rel=1e-9)
