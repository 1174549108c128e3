"""Scores of probabilities, against hand-worked cases, torch, torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from lsexp.analysis.calibration import (
    BINS,
    brier,
    debiased_ece,
    ece,
    ece_floor,
    nll,
    scores,
    softmax,
    top_label,
)


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


def drawn(seed, gap, examples=2000, count=400):
    """`count` models of confidences 0.5..1 that are right `gap` less often than they say."""
    rng = np.random.RandomState(seed)
    confidence = rng.uniform(0.5, 1, size=(count, examples))
    return confidence, rng.uniform(size=confidence.shape) < confidence - gap


def plug_in(confidence, correct, bins=BINS):
    """`ece` through two classes: the named one has this confidence and is or is not the label."""
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    return ece(probabilities, np.where(correct, 0, 1), bins)


def test_top_label_by_hand():
    confidence, correct = top_label(
        np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]), np.array([1, 0, 1])
    )
    assert confidence.tolist() == [0.8, 0.5, 0.9]
    assert correct.tolist() == [True, True, False]


def test_debiased_ece_by_hand():
    # Upper bin: confidence .75, 2 of 4 right: |gap| .25, variance .25 / 4. With both .25:
    # folded mean = .25 (sqrt(2 / pi) exp(-1 / 2) + erf(1 / sqrt 2)) = .291658, off .5.
    # Lower bin: confidence .4, its one example right: gap .6 without noise.
    confidence = np.array([0.75, 0.75, 0.75, 0.75, 0.4])
    found = debiased_ece(confidence, np.array([1, 1, 0, 0, 1]), bins=2)
    assert found == pytest.approx((4 * (0.5 - 0.291658) + 0.6) / 5, abs=1e-6)


def test_debiased_ece_is_the_limit_of_kumars_resampling():
    logits, labels = random_case(6, count=300)
    probabilities = softmax(logits)
    confidence, correct = top_label(probabilities, labels)
    bin_of = np.ceil(confidence * BINS).astype(int)
    rng = np.random.RandomState(0)
    resampled = np.zeros(200_000)
    for b in set(bin_of):
        here = bin_of == b
        accuracy = correct[here].mean()
        deviation = np.sqrt(accuracy * (1 - accuracy) / here.sum())
        means = accuracy + deviation * rng.standard_normal(len(resampled))
        resampled += here.mean() * np.abs(means - confidence[here].mean())
    expected = 2 * ece(probabilities, labels) - resampled.mean()
    error = resampled.std() / np.sqrt(len(resampled))
    assert debiased_ece(confidence, correct) == pytest.approx(expected, abs=4 * error)
    assert debiased_ece(confidence, correct) <= ece(probabilities, labels)


def test_debiased_ece_is_the_plug_in_where_no_bin_shows_noise():
    confidence, correct = np.array([0.95, 0.95, 0.6, 0.3]), np.array([1, 1, 0, 1])
    assert debiased_ece(confidence, correct) == pytest.approx((0.1 + 0.6 + 0.7) / 4)
    assert plug_in(np.array([0.95, 0.95, 0.6]), correct[:3]) == pytest.approx(
        debiased_ece(confidence[:3], correct[:3])
    )


def test_debiased_ece_is_nearly_unbiased_where_a_model_is_miscalibrated():
    confidence, correct = drawn(7, gap=0.15)
    found = np.array([debiased_ece(c, r) for c, r in zip(confidence, correct, strict=True)])
    # Bins have a standard error of some .03: the gap is five of them.
    assert found.mean() == pytest.approx(0.15, abs=4 * found.std() / np.sqrt(len(found)))


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.02])
def test_debiased_ece_has_less_bias_than_the_plug_in_which_is_biased_upward(gap):
    confidence, correct = drawn(8, gap)
    pairs = list(zip(confidence, correct, strict=True))
    plain = np.mean([plug_in(c, r) for c, r in pairs]) - gap
    debiased = np.mean([debiased_ece(c, r) for c, r in pairs]) - gap
    assert plain > 0.003
    assert abs(debiased) < 0.65 * plain


def test_59_percent_of_the_bias_are_left_where_a_model_is_calibrated():
    confidence, correct = drawn(9, gap=0.0)
    pairs = list(zip(confidence, correct, strict=True))
    plain = np.mean([plug_in(c, r) for c, r in pairs])
    debiased = np.mean([debiased_ece(c, r) for c, r in pairs])
    assert debiased / plain == pytest.approx(2 - np.sqrt(2), abs=0.03)


def test_debiased_ece_may_be_negative():
    assert debiased_ece(np.full(4, 0.5), np.array([1, 1, 0, 0])) == pytest.approx(
        -0.25 * np.sqrt(2 / np.pi)
    )


def test_debiased_ece_and_floor_do_not_depend_on_the_order_of_examples():
    confidence, correct = (a[0] for a in drawn(10, gap=0.05, count=1))
    order = np.random.RandomState(0).permutation(len(confidence))
    assert debiased_ece(confidence[order], correct[order]) == pytest.approx(
        debiased_ece(confidence, correct)
    )
    assert ece_floor(confidence[order]) == pytest.approx(ece_floor(confidence))


def test_no_examples_are_an_error():
    with pytest.raises(ValueError, match="confidences"):
        debiased_ece(np.array([]), np.array([]))
    with pytest.raises(ValueError, match="confidences"):
        debiased_ece(np.array([0.5, 0.6]), np.array([1]))
    with pytest.raises(ValueError, match="confidences"):
        ece_floor(np.array([]))


@pytest.mark.parametrize(
    ("name", "examples"),
    [("spread", 50), ("spread", 2000), ("sure", 30), ("sure", 1000), ("equal", 20)],
)
def test_the_floor_is_the_mean_ece_of_calibrated_models(name, examples):
    rng = np.random.RandomState(examples)
    confidence = {
        "spread": lambda: rng.uniform(0.5, 1, size=examples),
        # All in the last bin or near it, where few mistakes or less than one are expected.
        "sure": lambda: 1 - 0.05 * rng.uniform(size=examples) ** 4,
        "equal": lambda: np.full(examples, 0.8),
    }[name]()
    found = [plug_in(confidence, rng.uniform(size=examples) < confidence) for _ in range(3000)]
    error = np.std(found) / np.sqrt(len(found))
    # 3 % for bins of unlike confidences, which only equal ones make exact.
    assert ece_floor(confidence) == pytest.approx(np.mean(found), rel=0.03, abs=4 * error)


def test_the_floor_of_a_bin_of_unlike_confidences_has_their_variance():
    # One bin of .5 to 1: the mean of c (1 - c) is .167, that of equal confidences of .75 .1875.
    rng = np.random.RandomState(11)
    confidence = np.linspace(0.5, 1, 200)
    correct = rng.uniform(size=(5000, 200)) < confidence
    found = np.abs((correct - confidence).mean(axis=1))
    error = found.std() / np.sqrt(len(found))
    assert ece_floor(confidence, bins=1) == pytest.approx(found.mean(), abs=3.3 * error)


def test_the_floor_by_hand():
    # Four of .75: 0..4 right with 1, 12, 54, 108 and 81 of 256; |right / 4 - .75|.
    expected = (1 * 0.75 + 12 * 0.5 + 54 * 0.25 + 81 * 0.25) / 256
    assert ece_floor(np.full(4, 0.75)) == pytest.approx(expected)
    # Certain models are calibrated only when they are right.
    assert ece_floor(np.ones(10)) == 0
    assert ece_floor(np.array([1.0, 0.0])) == 0


def test_the_floor_of_many_examples_is_that_of_a_normal_distribution():
    normal = np.sqrt(2 / np.pi * 0.9 * 0.1 / 10**6)
    assert ece_floor(np.full(10**6, 0.9)) == pytest.approx(normal, rel=1e-4)
