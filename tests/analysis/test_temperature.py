"""Temperature scaling: by hand, against SciPy's and torch's optimisers, and where T is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lsexp.analysis.calibration import ece, nll, softmax
from lsexp.analysis.temperature import GRID, Temperature, curve, fit_temperature, halves


def calibrated(seed, count=5000, classes=10, spread=2.0):
    """Logits and labels that are drawn from their softmax: the true T is 1."""
    rng = np.random.RandomState(seed)
    logits = spread * rng.standard_normal((count, classes))
    shares = softmax(logits).cumsum(axis=1)
    labels = (rng.uniform(size=(count, 1)) > shares[:, :-1]).sum(axis=1)
    return logits, labels


def gapped(wrong, count, gap=4.0):
    """Two classes whose logits differ by `gap`, the first `wrong` of `count` examples wrong."""
    return np.tile([gap, 0.0], (count, 1)), (np.arange(count) < wrong).astype(int)


# fit_temperature, by NLL


@pytest.mark.parametrize(("wrong", "count"), [(1, 4), (1, 100), (49, 100)])
def test_of_equal_gaps_the_fitted_confidence_is_the_accuracy(wrong, count):
    logits, labels = gapped(wrong, count)
    found = fit_temperature(logits, labels)
    # 1 / (1 + exp(-4 / T)) = accuracy.
    assert found.value == pytest.approx(4 / np.log((count - wrong) / wrong), rel=1e-9)
    assert (found.by, found.at_edge) == ("nll", False)
    assert ece(softmax(logits / found.value), labels) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("truth", [0.3, 1.0, 1.9, 4.0])
@pytest.mark.parametrize("classes", [2, 100])
def test_the_temperature_that_logits_were_multiplied_by_is_found(classes, truth):
    logits, labels = calibrated(1, classes=classes)
    found = fit_temperature(truth * logits, labels)
    assert not found.at_edge
    # The information about log T of 5,000 examples leaves some 3 %.
    assert found.value == pytest.approx(truth, rel=0.08)


@pytest.mark.parametrize("factor", [1e-6, 0.5, 3.0, 1e4, 1e30])
def test_multiplied_logits_have_a_multiplied_temperature(factor):
    logits, labels = calibrated(2, count=500)
    expected = factor * fit_temperature(logits, labels).value
    found = fit_temperature(factor * logits, labels)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert not found.at_edge


def test_what_softmax_does_not_see_does_not_move_the_temperature():
    logits, labels = calibrated(3, count=500)
    expected = fit_temperature(logits, labels).value
    rng = np.random.RandomState(0)
    order, names = rng.permutation(500), rng.permutation(10)
    renamed = np.empty_like(logits)
    renamed[:, names] = logits
    shifted = logits + 100 * rng.standard_normal((500, 1))
    for case in [(logits[order], labels[order]), (renamed, names[labels]), (shifted, labels)]:
        assert fit_temperature(*case).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_the_minimum_that_scipy_finds(dtype, spread):
    logits, labels = calibrated(4, count=500)
    logits = (spread * logits).astype(dtype)
    exact = logits.astype(np.float64)
    expected = minimize_scalar(
        lambda s: nll(exact / np.exp(s), labels),
        bounds=(np.log(spread) - 5, np.log(spread) + 5),
        method="bounded",
        options={"xatol": 1e-9},
    )
    found = fit_temperature(logits, labels)
    assert np.log(found.value) == pytest.approx(expected.x, abs=1e-6)
    assert nll(exact / found.value, labels) <= expected.fun + 1e-12


def test_torchs_gradient_is_zero_there():
    logits, labels = calibrated(5, count=500)
    log_temperature = torch.tensor(
        np.log(fit_temperature(logits, labels).value), requires_grad=True
    )
    scaled = torch.from_numpy(logits) / log_temperature.exp()
    F.cross_entropy(scaled, torch.from_numpy(labels)).backward()
    assert abs(log_temperature.grad.item()) < 1e-10


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 30),
    st.integers(2, 6),
    st.floats(0.1, 30),
    st.booleans(),
)
def test_on_the_examples_of_the_fit_none_is_better(seed, n, classes, spread, all_right):
    rng = np.random.RandomState(seed)
    logits = spread * rng.standard_normal((n, classes))
    labels = logits.argmax(axis=1) if all_right else rng.randint(classes, size=n)
    found = fit_temperature(logits, labels)
    others = np.concatenate([[1.0], found.value * np.array([0.5, 0.99, 1.01, 2.0])])
    if found.at_edge:
        # The minimum lies beyond: only T on the near side are worse.
        hot = found.value > np.ptp(logits)
        others = np.minimum(others, found.value) if hot else np.maximum(others, found.value)
    best = nll(logits / found.value, labels)
    assert (curve(logits, labels, others).nll >= best - 1e-12).all()


@pytest.mark.parametrize("classes", [2, 100])
def test_where_all_are_right_the_coldest_is_an_edge(classes):
    logits, _ = calibrated(6, count=200, classes=classes)
    found = fit_temperature(logits, logits.argmax(axis=1))
    assert found.at_edge
    scale = (logits.max(axis=1) - logits.mean(axis=1)).mean()
    assert found.value == pytest.approx(scale / 1000)
    # One example is no exception, nor is a tie that the label shares.
    assert fit_temperature(np.array([[3.0, 1.0]]), np.array([0])).at_edge
    assert fit_temperature(np.array([[3.0, 3.0, 0.0]]), np.array([1])).at_edge


@pytest.mark.parametrize("classes", [2, 100])
def test_where_all_are_wrong_or_labels_have_nothing_to_do_with_logits_the_hottest_is(classes):
    logits, _ = calibrated(7, count=200, classes=classes)
    scale = (logits.max(axis=1) - logits.mean(axis=1)).mean()
    found = fit_temperature(logits, logits.argmin(axis=1))
    assert found == Temperature(pytest.approx(1000 * scale), "nll", at_edge=True)
    # Every class is the label once with the same logits.
    labels = np.arange(classes)
    assert fit_temperature(np.tile(logits[:1], (classes, 1)), labels).at_edge


def test_a_wrong_example_that_was_likely_enough_is_no_edge():
    # All wrong, but the label's logit is above the mean: softer is better, up to a point.
    found = fit_temperature(np.array([[3.0, 2.0, -10.0]]), np.array([1]))
    assert not found.at_edge
    assert found.value > 1


@pytest.mark.parametrize("by", ["nll", "ece"])
def test_logits_without_differences_have_no_temperature(by):
    found = fit_temperature(np.full((5, 3), 0.1), np.zeros(5, int), by)
    assert found == Temperature(1.0, by, at_edge=True)


def test_a_zero_that_was_not_found_is_an_error(monkeypatch):
    monkeypatch.setattr("scipy.optimize.brentq", lambda f, low, high, xtol: low + 0.1)
    with pytest.raises(ArithmeticError, match="slope"):
        fit_temperature(*calibrated(8, count=100))


# fit_temperature, by ECE


def test_the_grid_has_1_in_the_middle_and_is_symmetric():
    assert GRID[len(GRID) // 2] == 1
    assert (GRID[0], GRID[-1]) == (0.1, 10)
    np.testing.assert_allclose(GRID * GRID[::-1], 1)
    assert GRID[1] / GRID[0] == pytest.approx(1.047, abs=1e-3)


@pytest.mark.parametrize("truth", [0.5, 1.0, 1.9])
def test_by_ece_the_temperature_that_logits_were_multiplied_by_is_found_too(truth):
    logits, labels = calibrated(9)
    found = fit_temperature(truth * logits, labels, by="ece")
    assert found.value == pytest.approx(truth, rel=0.15)
    assert (found.by, found.at_edge) == ("ece", False)


def test_by_ece_no_temperature_of_the_grid_is_better():
    logits, labels = calibrated(10, count=300, classes=5)
    found = fit_temperature(logits.astype(np.float32), labels, by="ece")
    exact = logits.astype(np.float32).astype(np.float64)
    every = [ece(softmax(exact / T), labels) for T in GRID]
    assert ece(softmax(exact / found.value), labels) == pytest.approx(min(every), abs=1e-12)


def test_by_ece_the_nearest_to_1_of_equals_is_taken():
    # A gap of 1,000 is certain at every T of the grid, and half of it is wrong: ECE .5 at all.
    logits, labels = gapped(1, 2, gap=1000.0)
    assert np.ptp(curve(logits, labels, GRID).ece) < 1e-12
    assert fit_temperature(logits, labels, by="ece") == Temperature(1.0, "ece", at_edge=False)
    # All right with a gap of 40 / T: confidence is exactly 1 up to T = 1.07 or so.
    assert fit_temperature(*gapped(0, 9, gap=40.0), by="ece").value == 1


def test_by_ece_the_ends_of_the_grid_are_edges():
    all_right = fit_temperature(*gapped(0, 100, gap=0.5), by="ece")
    assert all_right == Temperature(0.1, "ece", at_edge=True)
    logits, labels = gapped(50, 100, gap=1000.0)
    assert curve(logits, labels, GRID).ece == pytest.approx(0.5)
    half_right = fit_temperature(logits / 10, labels, by="ece")
    assert half_right == Temperature(10.0, "ece", at_edge=True)


# curve


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 100])
def test_the_curve_is_nll_and_ece_of_scaled_logits(classes, dtype, scale):
    logits, labels = calibrated(11, count=300, classes=classes)
    logits = (scale * logits).astype(dtype)
    temperatures = scale * np.array([3.0, 0.2, 1.0])
    found = curve(logits, labels, temperatures)
    scaled = [logits.astype(np.float64) / T for T in temperatures]
    assert found.nll == pytest.approx([nll(z, labels) for z in scaled], rel=1e-12)
    assert found.ece == pytest.approx([ece(softmax(z), labels) for z in scaled], abs=1e-12)


def test_the_curve_at_infinity_is_that_of_equal_probabilities():
    logits, labels = calibrated(12, count=200, classes=4)
    found = curve(logits, labels, np.array([1e9]))
    accuracy = (logits.argmax(axis=1) == labels).mean()
    assert found.nll == pytest.approx(np.log(4))
    assert found.ece == pytest.approx(accuracy - 0.25)


@pytest.mark.parametrize("temperatures", [[0.0], [1.0, -1.0], [np.inf], [np.nan]])
def test_temperatures_that_are_none_are_an_error(temperatures):
    with pytest.raises(ValueError, match="above 0"):
        curve(*gapped(1, 4), np.array(temperatures))


# halves


def test_halves_by_hand():
    # Pinned: a stream that changes would move every T that was fitted.
    first, second = halves(np.array([1, 0, 1, 0, 0, 1, 0, 0, 2, 1]), seed=0)
    assert (first.tolist(), second.tolist()) == ([0, 1, 3, 4, 5], [2, 6, 7, 8, 9])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=200), st.integers(0, 2**32 - 1))
def test_halves_are_disjoint_and_alike(labels, seed):
    labels = np.array(labels)
    first, second = halves(labels, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert len(second) - len(first) == len(labels) % 2
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()
    counts = [np.bincount(labels[half], minlength=7) for half in (first, second)]
    assert np.abs(counts[0] - counts[1]).max() <= 1


def test_halves_depend_on_the_seed_alone():
    labels = np.random.RandomState(0).randint(10, size=1000)
    once, again, other = halves(labels, 1), halves(labels.astype(np.uint8), 1), halves(labels, 2)
    assert np.array_equal(once[0], again[0])
    assert not np.array_equal(once[0], other[0])


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_examples_have_no_halves(count):
    with pytest.raises(ValueError, match="no two halves"):
        halves(np.zeros(count, int))


# What cannot be fitted


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.empty((0, 3)), [], "logits"),
        (np.empty((2, 0)), [0, 0], "logits"),
        ([3.0, 1.0], [0, 1], "logits"),
        ([[3.0, 1.0]], [0, 1], "logits"),
        ([[3.0, np.nan]], [0], "not finite"),
        ([[3.0, -np.inf]], [0], "not finite"),
        ([[3.0, 1.0]], [2], r"labels must be in 0\.\.1, not 2\.\.2"),
        ([[3.0, 1.0]], [-1], r"labels must be in 0\.\.1, not -1\.\.-1"),
        ([[0.75, 0.25], [0.5, 0.5]], [0, 1], "probabilities"),
    ],
)
def test_bad_input_is_an_error(logits, labels, message):
    logits, labels = np.array(logits), np.array(labels, int)
    for by in ("nll", "ece"):
        with pytest.raises(ValueError, match=message):
            fit_temperature(logits, labels, by)
    with pytest.raises(ValueError, match=message):
        curve(logits, labels, np.ones(1))


def test_another_criterion_is_an_error():
    with pytest.raises(ValueError, match="nll or ece"):
        fit_temperature(*gapped(1, 4), by="brier")


def test_log_probabilities_are_logits():
    logits, labels = calibrated(13, count=200)
    found = fit_temperature(np.log(softmax(logits)), labels)
    assert found.value == pytest.approx(fit_temperature(logits, labels).value, rel=1e-9)
