"""Scores of probabilities, against hand-worked cases, torch, torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from lsexp.analysis.calibration import BINS, brier, ece, nll, scores, softmax


def random_case(seed, count=500, classes=10, spread=3.0):
    """Logits float64 that know something of the labels."""
    rng = np.random.RandomState(seed)
    labels = rng.randint(classes, size=count)
    logits = spread * rng.standard_normal((count, classes))
    logits[np.arange(count), labels] += spread
    return logits, labels


def two(*confidences):
    """Rows [c, 0]: class 0 with confidence c."""
    return np.array([[c, 0.0] for c in confidences])


@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_ece_is_that_of_torchmetrics(classes, spread):
    logits, labels = random_case(1, classes=classes, spread=spread)
    probabilities = softmax(logits)
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities),
        torch.from_numpy(labels),
        num_classes=classes,
        n_bins=15,
        norm="l1",
    )
    assert ece(probabilities, labels) == pytest.approx(expected.item(), abs=1e-6)


def test_ece_of_one_bin_is_accuracy_against_mean_confidence():
    assert ece(two(0.9, 0.8, 0.7, 0.6), np.array([0, 1, 1, 1]), bins=1) == pytest.approx(0.5)


def test_ece_weighs_bins_by_their_examples():
    # Bin (14/15, 1]: three of .96, two right. Bin (7/15, 8/15]: one of .5, right.
    found = ece(two(0.96, 0.96, 0.96, 0.5), np.array([0, 0, 1, 0]))
    assert found == pytest.approx((3 * abs(2 / 3 - 0.96) + 1 * abs(1 - 0.5)) / 4)


def test_ece_is_0_where_every_bin_is_right_as_often_as_it_says():
    probabilities = np.repeat([[0.75, 0.25], [0.5, 0.5]], 4, axis=0)
    assert ece(probabilities, np.array([0, 0, 0, 1, 0, 0, 1, 1])) == pytest.approx(0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ece_of_full_confidence_is_the_error(value):
    labels = np.array([0, 0, 1, 1 - int(value)])
    probabilities = two(1.0, 1.0, 1.0, 1.0)
    assert ece(probabilities, labels) == pytest.approx((labels == 1).mean())


def test_confidence_1_shares_the_last_bin():
    # Together |1/2 - mean(1, .95)|; in bins of their own it would be (1 + .05) / 2.
    assert ece(two(1.0, 0.95), np.array([1, 0])) == pytest.approx(0.475)


@pytest.mark.parametrize("k", range(1, BINS + 1))
def test_a_confidence_on_an_edge_is_of_the_bin_below(k):
    edge, below, above = k / BINS, (k - 0.5) / BINS, (k + 0.5) / BINS
    labels = np.array([1, 0])  # wrong on the edge, right beside it
    together, apart = abs(1 - edge - below) / 2, (edge + 1 - above) / 2
    assert ece(two(edge, below), labels) == pytest.approx(together)
    if k < BINS:
        assert ece(two(edge, above), labels) == pytest.approx(apart)


def test_scores_do_not_depend_on_the_order_of_examples_or_on_names_of_classes():
    logits, labels = random_case(2)
    expected = scores(logits, labels)
    order = np.random.RandomState(0).permutation(len(labels))
    assert scores(logits[order], labels[order]) == pytest.approx(expected)
    names = np.random.RandomState(1).permutation(10)
    renamed = np.empty_like(logits)
    renamed[:, names] = logits
    assert scores(renamed, names[labels]) == pytest.approx(expected)


def test_brier_by_hand():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    found = brier(probabilities, np.array([0, 0, 1]))
    assert found == pytest.approx((0 + 2 + 0.25 + 0.5625 + 0.0625) / 3)


@pytest.mark.parametrize("classes", [2, 10])
def test_brier_is_the_sum_over_classes_of_scikit_learns(classes):
    logits, labels = random_case(3, classes=classes)
    probabilities = softmax(logits)
    parts = [brier_score_loss(labels == k, probabilities[:, k]) for k in range(classes)]
    assert brier(probabilities, labels) == pytest.approx(sum(parts))


@pytest.mark.parametrize("spread", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nll_is_torchs_cross_entropy_however_far_the_logits_are_apart(spread, dtype):
    logits, labels = random_case(4, spread=spread)
    logits = logits.astype(dtype)
    expected = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert nll(logits, labels) == pytest.approx(expected.item(), rel=1e-12)


def test_nll_of_a_confident_mistake_is_the_distance_of_the_logits():
    assert nll(np.array([[1e4, 0.0]]), np.array([1])) == 1e4
    assert nll(np.array([[1e4, 0.0]]), np.array([0])) == 0.0


def test_softmax_is_torchs_and_does_not_move_with_a_constant():
    logits, _ = random_case(5)
    found = softmax(logits)
    np.testing.assert_allclose(found, torch.from_numpy(logits).softmax(1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(softmax(logits + 100), found, rtol=1e-10)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-14)


def test_softmax_of_extreme_logits_is_finite():
    logits = np.array([[1e30, -1e30], [3e38, -3e38], [-1e30, -1e30]], dtype=np.float32)
    found = softmax(logits)
    assert found.dtype == np.float64
    assert found.tolist() == [[1, 0], [1, 0], [0.5, 0.5]]


def test_scores_of_a_split_by_hand():
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.3, 0.7]])
    found = scores(logits, np.array([0, 1, 1]))
    expected = {
        "accuracy": 2 / 3,
        "nll": -np.log([0.8, 0.2, 0.7]).mean(),
        # .8 is an edge, 12/15: (11/15, 12/15]; .7 is in (10/15, 11/15].
        "ece": (2 * abs(0.5 - 0.8) + abs(1 - 0.7)) / 3,
        "brier": (0.08 + 1.28 + 0.18) / 3,
    }
    assert found == pytest.approx(expected)
