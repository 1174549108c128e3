"""Scores of probabilities: by hand, against torch, torchmetrics, scikit-learn, SciPy and netcal."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from netcal import metrics
from scipy import stats
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from lsexp.analysis.calibration import (
    BINS,
    adaptive_ece,
    brier,
    brier_by_example,
    classwise_ece,
    confidence_gap,
    debiased_ece,
    debiased_ece_over_both,
    ece,
    ece_floor,
    ece_of,
    mce,
    nll,
    nll_by_example,
    reliability,
    sampling_band,
    scores,
    softmax,
    top_label,
)
from lsexp.analysis.collapse import effective_smoothing
from lsexp.analysis.distillation import gamma, wrong_class_agreement
from lsexp.analysis.selective import choose_p
from lsexp.analysis.statistics import over_both_of
from lsexp.analysis.temperature import curve, fit_temperature


def random_case(seed, count=500, classes=10, spread=3.0):
    """Logits float64 that know something of the labels."""
    rng = np.random.RandomState(seed)
    labels = rng.randint(classes, size=count)
    logits = spread * rng.standard_normal((count, classes))
    logits[np.arange(count), labels] += spread
    return logits, labels


def rows(*confidences):
    """Class 0 with each confidence, which may be small: the rest is of 99 classes."""
    return np.array([[c, *[(1 - c) / 99] * 99] for c in confidences])


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
    assert ece(rows(0.9, 0.8, 0.7, 0.6), np.array([0, 1, 1, 1]), bins=1) == pytest.approx(0.5)


def test_ece_weighs_bins_by_their_examples():
    # Bin (14/15, 1]: three of .96, two right. Bin (7/15, 8/15]: one of .5, right.
    found = ece(rows(0.96, 0.96, 0.96, 0.5), np.array([0, 0, 1, 0]))
    assert found == pytest.approx((3 * abs(2 / 3 - 0.96) + 1 * abs(1 - 0.5)) / 4)


def test_ece_is_0_where_every_bin_is_right_as_often_as_it_says():
    probabilities = np.repeat([[0.75, 0.25], [0.5, 0.5]], 4, axis=0)
    assert ece(probabilities, np.array([0, 0, 0, 1, 0, 0, 1, 1])) == pytest.approx(0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ece_of_full_confidence_is_the_error(value):
    labels = np.array([0, 0, 1, 1 - int(value)])
    probabilities = rows(1.0, 1.0, 1.0, 1.0)
    assert ece(probabilities, labels) == pytest.approx((labels == 1).mean())


def test_confidence_1_shares_the_last_bin():
    # Together |1/2 - mean(1, .95)|; in bins of their own it would be (1 + .05) / 2.
    assert ece(rows(1.0, 0.95), np.array([1, 0])) == pytest.approx(0.475)


@pytest.mark.parametrize("k", range(1, BINS + 1))
def test_a_confidence_on_an_edge_is_of_the_bin_below(k):
    edge, below, above = k / BINS, (k - 0.5) / BINS, (k + 0.5) / BINS
    labels = np.array([1, 0])  # wrong on the edge, right beside it
    together, apart = abs(1 - edge - below) / 2, (edge + 1 - above) / 2
    assert ece(rows(edge, below), labels) == pytest.approx(together)
    if k < BINS:
        assert ece(rows(edge, above), labels) == pytest.approx(apart)


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
    assert ece_of(np.array([0.95, 0.95, 0.6]), correct[:3]) == pytest.approx(
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
    plain = np.mean([ece_of(c, r) for c, r in pairs]) - gap
    debiased = np.mean([debiased_ece(c, r) for c, r in pairs]) - gap
    assert plain > 0.003
    assert abs(debiased) < 0.65 * plain


def test_59_percent_of_the_bias_are_left_where_a_model_is_calibrated():
    confidence, correct = drawn(9, gap=0.0)
    pairs = list(zip(confidence, correct, strict=True))
    plain = np.mean([ece_of(c, r) for c, r in pairs])
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
    found = [ece_of(confidence, rng.uniform(size=examples) < confidence) for _ in range(3000)]
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


OF_TOP_LABEL = [reliability, mce, adaptive_ece, confidence_gap, debiased_ece]

PAIRS = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 1), st.sampled_from([k / BINS for k in range(BINS + 1)])),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


def columns(pairs):
    """Confidence and correct from `PAIRS`."""
    return tuple(np.array(column) for column in zip(*pairs, strict=True))


def test_reliability_by_hand():
    # (0, 1/4]: 0 and .25, one right; (1/4, 1/2] is empty; (1/2, 3/4]: .75, wrong; the last: 1 and
    # .8, both right.
    confidence = np.array([0.0, 0.25, 0.75, 1.0, 0.8])
    found = reliability(confidence, np.array([False, True, False, True, True]), bins=4)
    assert found.low.tolist() == [0, 0.25, 0.5, 0.75]
    assert found.high.tolist() == [0.25, 0.5, 0.75, 1]
    assert found.n.tolist() == [2, 0, 1, 2]
    np.testing.assert_allclose(found.confidence, [0.125, np.nan, 0.75, 0.9])
    np.testing.assert_allclose(found.accuracy, [0.5, np.nan, 0, 1])


@pytest.mark.parametrize("k", range(1, BINS + 1))
def test_reliability_has_an_edge_in_the_bin_below(k):
    found = reliability(np.array([k / BINS]), np.array([True]))
    assert np.flatnonzero(found.n).tolist() == [k - 1]
    assert found.high[k - 1] == k / BINS


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_ece_and_mce_are_the_mean_and_the_largest_gap_of_reliability(pairs):
    confidence, correct = columns(pairs)
    found = reliability(confidence, correct)
    gap = np.abs(found.accuracy - found.confidence)
    assert found.n.sum() == len(pairs)
    assert np.array_equal(np.isnan(gap), found.n == 0)
    assert ece_of(confidence, correct) == pytest.approx(np.nansum(found.n * gap) / len(pairs))
    assert mce(confidence, correct) == np.nanmax(gap)


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_the_gap_of_the_means_is_at_most_ece_and_ece_at_most_mce(pairs):
    confidence, correct = columns(pairs)
    gap, rounding = abs(confidence_gap(confidence, correct)), 1e-12
    assert gap <= ece_of(confidence, correct) + rounding
    assert gap <= adaptive_ece(confidence, correct) + rounding
    assert ece_of(confidence, correct) <= mce(confidence, correct) + rounding


@settings(max_examples=200, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_adaptive_ece_does_not_depend_on_the_order_of_ties(pairs, random):
    found = adaptive_ece(*columns(pairs), bins=4)
    random.shuffle(pairs)
    assert adaptive_ece(*columns(pairs), bins=4) == pytest.approx(found, abs=1e-12)


def test_the_band_by_hand():
    # .85 and .95, one example each: none right has a chance of 15 % and 5 %. Of .99 it has 1 %.
    low, high = sampling_band(np.array([0.85, 0.95]), bins=10)
    assert np.isnan(low[:8]).all()
    assert np.isnan(high[:8]).all()
    assert low[8:].tolist() == [0, 0]
    assert high[8:].tolist() == [1, 1]
    assert [end[-1] for end in sampling_band(np.array([0.99]))] == [1, 1]
    # Four of .75: 0..4 right with 1, 12, 54, 108 and 81 of 256. 13/256 is more than 2.5 %.
    assert [end[11] for end in sampling_band(np.full(4, 0.75))] == [0.25, 1]


@pytest.mark.parametrize("count", [1, 7, 300, 20_000])
def test_the_band_is_that_of_scipys_binomial_distribution(count):
    confidence = np.random.RandomState(count).uniform(0.1, 1, size=count)
    found = reliability(confidence, np.zeros(count))
    for b, (low, high) in enumerate(zip(*sampling_band(confidence), strict=True)):
        if found.n[b]:
            expected = stats.binom(found.n[b], found.confidence[b]).ppf([0.025, 0.975])
            assert (low * found.n[b], high * found.n[b]) == pytest.approx(tuple(expected))
        else:
            assert np.isnan([low, high]).all()


def test_a_calibrated_model_stays_in_its_band():
    confidence, correct = drawn(12, gap=0.0, count=200)
    outside = []
    for c, r in zip(confidence, correct, strict=True):
        low, high = sampling_band(c)
        accuracy = reliability(c, r).accuracy
        outside.append(((accuracy < low) | (accuracy > high))[~np.isnan(low)])
    # 8 bins of some 250 examples; the smallest possible step is 1/250.
    assert 0.02 < np.mean(np.concatenate(outside)) < 0.055


def test_a_certain_model_has_no_band():
    low, high = sampling_band(np.ones(50))
    assert (low[-1], high[-1]) == (1, 1)
    low, high = sampling_band(np.zeros(50))
    assert (low[0], high[0]) == (0, 0)


@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_mce_is_that_of_torchmetrics(classes, spread):
    logits, labels = random_case(13, classes=classes, spread=spread)
    probabilities = softmax(logits)
    # It works in float32, and gives a confidence of 1 a bin of its own.
    below_1 = probabilities.max(axis=1).astype(np.float32) < 1
    probabilities, labels = probabilities[below_1], labels[below_1]
    assert below_1.mean() > 0.5
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities),
        torch.from_numpy(labels),
        num_classes=classes,
        n_bins=15,
        norm="max",
    )
    assert mce(*top_label(probabilities, labels)) == pytest.approx(expected.item(), abs=1e-6)


def test_mce_by_hand():
    # (14/15, 1]: 1 and .96, one right: |1/2 - .98|. (7/15, 8/15]: .5, right.
    assert mce(np.array([1.0, 0.96, 0.5]), np.array([1, 0, 1])) == pytest.approx(0.5)
    assert mce(np.array([1.0, 0.96]), np.array([1, 0])) == pytest.approx(0.48)


@pytest.mark.parametrize("bins", [1, 2, 15])
def test_adaptive_ece_is_that_of_equal_stretches_of_the_sorted_examples(bins):
    rng = np.random.RandomState(14)
    confidence = rng.uniform(0.3, 1, size=300)
    correct = rng.uniform(size=300) < 0.7
    order = np.argsort(confidence)
    gaps = (correct.astype(float) - confidence)[order]
    expected = sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / 300
    assert adaptive_ece(confidence, correct, bins) == pytest.approx(expected)


def test_adaptive_ece_of_ties_by_hand():
    # Middles of the ranks: .5 has 0, the three of .9 have 2 of 0..3, the upper half.
    confidence, correct = np.array([0.9, 0.5, 0.9, 0.9]), np.array([1, 0, 1, 0])
    assert adaptive_ece(confidence, correct, bins=2) == pytest.approx(
        (abs(0 - 0.5) + abs(2 - 2.7)) / 4
    )
    # All equal: one bin, whatever their number.
    assert adaptive_ece(np.full(9, 0.7), np.arange(9) < 6) == pytest.approx(0.7 - 6 / 9)


def test_adaptive_ece_of_few_examples_takes_each_for_itself():
    found = adaptive_ece(np.array([0.9, 0.91, 0.92]), np.array([1, 0, 1]))
    assert found == pytest.approx((0.1 + 0.91 + 0.08) / 3)


def test_adaptive_ece_sees_what_one_bin_hides():
    # All in (14/15, 1], right as often as said on average: those of .94 always, of 1 94 of 100.
    confidence = np.repeat([0.94, 1.0], 100)
    correct = np.arange(200) < 194
    assert ece_of(confidence, correct) == pytest.approx(0)
    assert adaptive_ece(confidence, correct, bins=2) == pytest.approx(0.06)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_classwise_ece_is_the_mean_of_torchmetrics_for_each_class_against_the_rest(classes):
    logits, labels = random_case(15, classes=classes, spread=1.0)
    probabilities = softmax(logits)
    parts = [
        binary_calibration_error(
            torch.from_numpy(probabilities[:, k].copy()),
            torch.from_numpy((labels == k).astype(int)),
            n_bins=15,
            norm="l1",
        )
        for k in range(classes)
    ]
    assert classwise_ece(probabilities, labels) == pytest.approx(np.mean(parts), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 100])
def test_classwise_ece_by_hand(classes):
    labels = np.arange(classes)
    certain = np.eye(classes)
    assert classwise_ece(certain, labels) == 0
    # Always the next class: of each class two examples are wrong by 1.
    assert classwise_ece(certain, (labels + 1) % classes) == pytest.approx(2 / classes)
    # The base rate is calibrated, and tells nothing.
    assert classwise_ece(np.full((classes, classes), 1 / classes), labels) == pytest.approx(0)


@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_errors_are_those_of_netcal(classes, spread):
    logits, labels = random_case(18, count=600, classes=classes, spread=spread)
    confidence, correct = top_label(softmax(logits), labels)
    case = confidence, correct.astype(int)
    assert ece_of(*case) == pytest.approx(metrics.ECE(15).measure(*case), abs=1e-12)
    assert mce(*case) == pytest.approx(metrics.MCE(15).measure(*case), abs=1e-12)
    equal_mass = metrics.ECE(15, equal_intervals=False).measure(*case)
    assert adaptive_ece(*case) == pytest.approx(equal_mass, abs=1e-12)
    # Theirs is the mean over bins that are not empty.
    found = reliability(*case)
    unweighted = np.nanmean(np.abs(found.accuracy - found.confidence))
    assert unweighted == pytest.approx(metrics.ACE(15).measure(*case), abs=1e-12)


def test_classwise_ece_does_not_depend_on_names_of_classes():
    logits, labels = random_case(16)
    names = np.random.RandomState(1).permutation(10)
    renamed = np.empty_like(logits)
    renamed[:, names] = logits
    found = classwise_ece(softmax(renamed), names[labels])
    assert found == pytest.approx(classwise_ece(softmax(logits), labels))


def test_the_confidence_gap_is_positive_where_a_model_is_overconfident():
    confidence = np.array([0.9, 0.7, 0.8, 0.6])
    assert confidence_gap(confidence, np.array([1, 0, 1, 0])) == pytest.approx(0.25)
    assert confidence_gap(confidence, np.ones(4)) == pytest.approx(-0.25)
    assert abs(confidence_gap(confidence, np.ones(4))) == pytest.approx(
        ece_of(confidence, np.ones(4), bins=1)
    )


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("confidence", [0.01, 0.5, 14 / 15, 1.0])
def test_every_error_of_one_example_is_its_gap(confidence, correct):
    one = np.array([confidence]), np.array([correct])
    expected = abs(confidence - correct)
    for measure in (ece_of, mce, adaptive_ece, debiased_ece):
        assert measure(*one) == pytest.approx(expected)
    assert confidence_gap(*one) == pytest.approx(confidence - correct)


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("classes", [2, 100])
def test_errors_where_all_are_right_or_all_wrong(classes, correct):
    logits, _ = random_case(17, classes=classes)
    probabilities = softmax(logits)
    labels = probabilities.argmax(1) if correct else probabilities.argmin(1)
    confidence, found = top_label(probabilities, labels)
    assert (found == correct).all()
    expected = np.abs(confidence - correct).mean()
    assert ece_of(confidence, found) == pytest.approx(expected)
    assert adaptive_ece(confidence, found) == pytest.approx(expected)
    assert abs(confidence_gap(confidence, found)) == pytest.approx(expected)
    assert mce(confidence, found) >= expected


def test_float32_confidences_are_taken_as_float64():
    confidence = np.array([0.9, 0.3, 0.75, 1.0, np.nextafter(np.float32(1), 2)], np.float32)
    correct = np.array([True, False, True, True, True])
    for measure in (ece_of, mce, adaptive_ece, confidence_gap, debiased_ece):
        found = measure(confidence, correct)
        assert found == pytest.approx(measure(confidence.astype(float), correct), abs=1e-15)
    assert reliability(confidence, correct).confidence.dtype == np.float64
    assert sampling_band(confidence)[1][-1] == 1


@pytest.mark.parametrize("measure", OF_TOP_LABEL)
def test_what_is_no_probability_is_an_error(measure):
    for confidence in ([], [0.5, 0.5]):
        with pytest.raises(ValueError, match="confidences and correctness must be"):
            measure(np.array(confidence), np.array([True]))
    for confidence in ([3.2], [-0.1]):
        with pytest.raises(ValueError, match="are these logits"):
            measure(np.array(confidence), np.array([True]))
    with pytest.raises(ValueError, match="confidences that are NaN"):
        measure(np.array([np.nan]), np.array([True]))


@pytest.mark.parametrize("measure", [ece, brier, top_label])
def test_rows_that_are_no_distribution_are_an_error(measure):
    sigmoids = np.array([[0.5, 0.5], [0.9, 0.9]])
    message = "must sum to 1: those of number 1 to 1.8; are these sigmoids"
    with pytest.raises(ValueError, match=message):
        measure(sigmoids, np.array([0, 0]))
    half = softmax(random_case(4)[0]).astype(np.float16)
    measure(half, np.zeros(len(half), int))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_in_training_are_taken_as_they_are(dtype):
    logits, labels = random_case(5)
    tensor = torch.tensor(logits, dtype=dtype, requires_grad=True)
    as_array = tensor.detach().float().numpy()
    assert scores(tensor, torch.tensor(labels)) == scores(as_array, labels)
    soft = tensor.softmax(1)
    assert ece(soft, torch.tensor(labels)) == ece(soft.detach().float().numpy(), labels)


def test_what_are_no_probabilities_of_classes_is_an_error():
    with pytest.raises(ValueError, match="are these logits"):
        classwise_ece(np.array([[2.0, -1.0]]), np.array([0]))
    with pytest.raises(ValueError, match=r"probabilities must be .* are these logits"):
        brier(np.array([[2.0, -1.0]]), np.array([0]))
    with pytest.raises(ValueError, match="no confidences"):
        sampling_band(np.array([]))


def agreement(logits_NK, labels_N):
    return wrong_class_agreement(logits_NK, np.flip(logits_NK), labels_N)


def curve_at_1(logits_NK, labels_N):
    return curve(logits_NK, labels_N, [1.0])


OF_LABELS = {
    f.__name__: f
    for f in (
        *(brier, brier_by_example, classwise_ece, ece, top_label, effective_smoothing),
        *(nll, nll_by_example, scores, choose_p, gamma, agreement, fit_temperature, curve_at_1),
    )
}

OF_PROBABILITIES = {"brier", "brier_by_example", "classwise_ece", "ece", "top_label"}


@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_that_are_no_classes_are_refused_by_all(name):
    function = OF_LABELS[name]
    rows, labels = random_case(20, count=10, classes=3)
    if name in OF_PROBABILITIES:
        rows = softmax(rows)
    function(rows, labels)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=rf"labels must be in 0\.\.2, not .*{wrong}"):
            function(rows, np.where(np.arange(10) == 4, wrong, labels))
    for wrong in (labels[:1], labels[:9], labels[:, None], labels[0]):
        with pytest.raises(ValueError, match=r"must be \[N, K\] and labels \[N\], not \(10, 3\)"):
            function(rows, wrong)
    with pytest.raises(ValueError, match=r"must be \[N, K\] and labels \[N\], not \(10,\)"):
        function(rows[:, 0], labels)
    with pytest.raises(ValueError, match="labels must be whole numbers, not float64"):
        function(rows, labels + 0.5)
    with pytest.raises(ValueError, match="no examples: "):
        function(rows[:0], labels[:0])


@pytest.mark.parametrize("name", OF_LABELS)
def test_lists_and_labels_of_any_whole_type_give_what_arrays_give(name):
    function = OF_LABELS[name]
    rows, labels = random_case(21, count=10, classes=3)
    if name in OF_PROBABILITIES:
        rows = softmax(rows)
    expected = function(rows, labels)
    for same in ((rows.tolist(), labels.tolist()), (rows, labels.astype(np.uint8))):
        np.testing.assert_equal(function(*same), expected)


def test_lists_of_logits_and_confidences_are_taken():
    assert softmax([[0.0, 0.0], [1, 1]]).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert mce([0.9, 0.4], [1, 0]) == pytest.approx(0.4)
    assert ece_floor([0.5, 0.5]) == pytest.approx(0.25)
    assert len(sampling_band([0.5, 0.5])[0]) == BINS


@pytest.mark.parametrize("logits", [[1.0, 2.0], 1.0, [], [[]], [[[1.0, 2.0]]]])
def test_logits_that_are_no_rows_have_no_probabilities(logits):
    with pytest.raises(ValueError, match=r"logits must be \[N, K\]"):
        softmax(logits)


@pytest.mark.parametrize("measure", OF_TOP_LABEL)
@pytest.mark.parametrize("correct", [[1, 2], [1, -1], [1, 0.5], [1, np.nan]])
def test_correctness_is_0_or_1(measure, correct):
    with pytest.raises(ValueError, match="correctness must be 0 or 1"):
        measure([0.9, 0.8], correct)


def test_bins_and_shapes_that_make_no_ece_are_refused():
    p, labels = np.full((4, 2), 0.5), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        ece(p, labels, bins=0)
    with pytest.raises(ValueError, match="`top_label` gives both"):
        debiased_ece(p, labels)


# Debiased ECE with its interval


def slow(confidence_SN, correct_SN, bins):
    """The definition: every group left out of the examples, not of their sums."""

    def statistic(seed, kept):
        return debiased_ece(confidence_SN[seed, kept], correct_SN[seed, kept], bins)

    return over_both_of(statistic, *confidence_SN.shape)


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("count", [2, 3, 40, 101, 1234])
@pytest.mark.parametrize("bins", [1, 15, 200])
@pytest.mark.parametrize("kind", ["continuous", "ties", "one bin", "all right", "float32"])
def test_the_interval_of_the_debiased_ece_is_that_of_leaving_examples_out(seeds, count, bins, kind):
    rng = np.random.RandomState(count + bins)
    confidence = rng.uniform(0.3, 1, size=(seeds, count))
    if kind == "ties":  # on edges of bins too, and with most bins empty
        confidence = rng.choice([0.2, 1 / 3, 0.6, 14 / 15, 1.0], size=(seeds, count))
    elif kind == "one bin":
        confidence = np.full((seeds, count), 0.99)
    elif kind == "float32":
        confidence = confidence.astype(np.float32)
    correct = rng.uniform(size=(seeds, count)) < confidence - 0.05
    if kind == "all right":
        correct[:] = True
    found, expected = (
        debiased_ece_over_both(confidence, correct, bins),
        slow(confidence, correct, bins),
    )
    assert found.value == pytest.approx(expected.value, rel=1e-13, abs=1e-15)
    assert (found.low is None) == (expected.low is None)
    if found.low is not None:
        assert found[1:3] == pytest.approx(expected[1:3], rel=1e-11, abs=1e-13)
    assert found[3:] == expected[3:]


def test_an_interval_of_the_debiased_ece_needs_seeds_examples_and_probabilities():
    with pytest.raises(ValueError, match="a seed and two groups"):
        debiased_ece_over_both([[0.5]], [[1]])
    for confidence, correct in (([0.5], [1]), ([[0.5, 0.5]], [[1]]), (np.ones((0, 4)),) * 2):
        with pytest.raises(ValueError, match=r"must be \[S, N\]"):
            debiased_ece_over_both(confidence, correct)
    with pytest.raises(ValueError, match="at least 1"):
        debiased_ece_over_both(np.ones((2, 0)), np.ones((2, 0)))
    with pytest.raises(ValueError, match="are these logits"):
        debiased_ece_over_both([[0.5, 2.0]], [[1, 1]])
    with pytest.raises(ValueError, match="bins must be at least 1"):
        debiased_ece_over_both([[0.5, 0.6]], [[1, 1]], bins=0)
