"""Scores and risk-coverage: by hand, against torch, all orders of ties, and sums over ranks."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lsexp.analysis.calibration import softmax
from lsexp.analysis.selective import (
    NORMS,
    aurc,
    choose_p,
    excess_aurc,
    max_probability_score,
    normalised_score,
    risk_coverage,
)


def random_logits(seed, count=300, classes=10, spread=2.0):
    return spread * np.random.RandomState(seed).standard_normal((count, classes))


def random_scores(seed, count=300):
    rng = np.random.RandomState(seed)
    score = rng.standard_normal(count)
    return score, rng.standard_normal(count) < 1 + score


# max_probability_score


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_the_score_is_the_log_odds_of_the_largest_probability(classes):
    logits = random_logits(1, classes=classes)
    p = softmax(logits).max(axis=1)
    np.testing.assert_allclose(max_probability_score(logits), np.log(p / (1 - p)), atol=1e-9)


def test_confidences_that_round_to_1_still_rank():
    logits = np.array([[0.0, -40.0, -41.0], [0.0, -50.0, -50.0], [0.0, -3000.0, -9e4]])
    assert (softmax(logits).max(axis=1) == 1).all()
    found = max_probability_score(logits)
    expected = [40 - np.log1p(np.exp(-1)), 50 - np.log(2), 3000]
    assert found.tolist() == pytest.approx(expected)
    float32 = np.array([[17.5, 0.0], [18.0, 0.0]], np.float32)
    assert (torch.from_numpy(float32).softmax(1)[:, 0] == 1).all()
    assert max_probability_score(float32).tolist() == [17.5, 18]


def test_the_score_of_extreme_or_equal_logits_is_finite():
    logits = np.array([[3e38, -3e38], [0, 0]], np.float32)
    assert max_probability_score(logits).tolist() == pytest.approx([2 * float(np.float32(3e38)), 0])
    assert max_probability_score(np.zeros((1, 4))) == pytest.approx(-np.log(3))


# normalised_score


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("classes", [3, 100])
def test_the_normalised_score_is_that_of_torchs_norm(classes, p):
    logits = torch.from_numpy(random_logits(2, classes=classes))
    centred = logits - logits.mean(dim=1, keepdim=True)
    expected = torch.nn.functional.normalize(centred, p, dim=1).max(dim=1).values
    np.testing.assert_allclose(normalised_score(logits.numpy(), p), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 9])
def test_the_normalised_score_depends_on_neither_scale_nor_shift(p):
    logits = random_logits(3)
    rng = np.random.RandomState(0)
    factor, shift = np.exp(rng.standard_normal((300, 1))), 100 * rng.standard_normal((300, 1))
    expected = normalised_score(logits, p)
    np.testing.assert_allclose(normalised_score(factor * logits + shift, p), expected, rtol=1e-10)
    for scale in (1e-30, 1e4, 1e30):
        np.testing.assert_allclose(normalised_score(scale * logits, p), expected, rtol=1e-10)


@pytest.mark.parametrize("p", NORMS)
def test_equal_logits_score_below_all_others(p):
    # The least that unequal logits can have: one far below, the rest alike.
    least = np.array([[1.0] * 9 + [-9.0]])
    assert normalised_score(np.full((1, 10), 0.1), p).tolist() == [0]
    assert normalised_score(least, p)[0] > 0
    assert (normalised_score(random_logits(4), p) >= normalised_score(least, p)[0]).all()


@pytest.mark.parametrize("p", NORMS)
def test_two_classes_have_one_normalised_score(p):
    found = normalised_score(random_logits(5, classes=2), p)
    assert np.ptp(found) == 0
    assert found[0] == pytest.approx(2 ** (-1 / p))


@pytest.mark.parametrize("p", [0, 0.5, -1, np.nan])
def test_what_is_no_norm_is_an_error(p):
    with pytest.raises(ValueError, match="p must be"):
        normalised_score(np.zeros((1, 3)), p)


@pytest.mark.parametrize("logits", [[[1.0]], [1.0, 2.0], [[np.nan, 0.0]], [[np.inf, 0.0]]])
@pytest.mark.parametrize("score", [max_probability_score, lambda z: normalised_score(z, 2)])
def test_what_are_no_logits_is_an_error(score, logits):
    with pytest.raises(ValueError, match="logits"):
        score(np.array(logits))


# risk_coverage and aurc


def test_risk_coverage_by_hand():
    # In the order of the score: right, wrong, right, wrong.
    found = risk_coverage(np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, True, False]))
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert found.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_the_risk_of_ties_is_the_mean_over_all_their_orders(pairs):
    score, correct = (np.array(column) for column in zip(*pairs, strict=True))
    risks = [
        np.cumsum(~correct[list(order)]) / np.arange(1, len(pairs) + 1)
        for order in itertools.permutations(range(len(pairs)))
        if (np.diff(score[list(order)]) <= 0).all()
    ]
    np.testing.assert_allclose(
        risk_coverage(score, correct).risk, np.mean(risks, axis=0), atol=1e-12
    )


def test_a_score_that_knows_nothing_has_the_error_everywhere():
    correct = np.arange(50) % 5 > 0
    assert risk_coverage(np.zeros(50), correct).risk == pytest.approx(0.2)
    assert aurc(np.zeros(50), correct) == pytest.approx(0.2)
    random = [aurc(np.random.RandomState(s).uniform(size=50), correct) for s in range(2000)]
    assert np.mean(random) == pytest.approx(0.2, abs=4 * np.std(random) / np.sqrt(2000))


def test_aurc_is_the_sum_over_mistakes_of_what_their_ranks_add():
    score, correct = random_scores(6)
    ranks = np.flatnonzero(~correct[np.argsort(-score)]) + 1
    tails = [(1 / np.arange(rank, 301)).sum() for rank in ranks]
    assert aurc(score, correct) == pytest.approx(sum(tails) / 300)


def test_aurc_by_hand_best_and_worst():
    correct = np.array([True, True, False])
    assert aurc(np.array([3.0, 2.0, 1.0]), correct) == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert aurc(np.array([1.0, 2.0, 3.0]), correct) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_aurc_does_not_depend_on_the_order_of_examples_nor_on_the_scale_of_the_score():
    score, correct = random_scores(7)
    score = np.round(score, 1)
    expected = aurc(score, correct)
    order = np.random.RandomState(0).permutation(300)
    assert aurc(score[order], correct[order]) == pytest.approx(expected)
    assert aurc(np.arctan(score), correct) == pytest.approx(expected)
    assert aurc(score, correct.astype(int)) == expected


def test_two_models_of_one_accuracy_rank_by_aurc_as_by_auroc():
    _, correct = random_scores(8)
    rng = np.random.RandomState(0)
    scores = [weight * correct + rng.standard_normal(300) for weight in (0.0, 1.0, 2.0, 3.0)]
    areas = [aurc(score, correct) for score in scores]
    assert np.argsort(areas).tolist() == [3, 2, 1, 0]
    assert np.argsort([-roc_auc_score(correct, score) for score in scores]).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("count", [1, 30])
def test_aurc_where_all_are_right_or_all_wrong(count):
    score = np.random.RandomState(0).uniform(size=count)
    assert aurc(score, np.ones(count, bool)) == 0
    assert aurc(score, np.zeros(count, bool)) == pytest.approx(1)
    assert excess_aurc(score, np.ones(count, bool)) == 0
    assert excess_aurc(score, np.zeros(count, bool)) == pytest.approx(0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40))
def test_no_score_beats_the_perfect_one_nor_is_worse_than_its_reverse(pairs):
    score, correct = (np.array(column) for column in zip(*pairs, strict=True))
    assert excess_aurc(score, correct) >= -1e-12
    assert aurc(score, correct) <= aurc(~correct, correct) + 1e-12


def test_the_area_of_a_perfect_order_is_geifmans_for_many_examples():
    correct = np.arange(10**6) >= 10**5
    assert aurc(correct, correct) == pytest.approx(0.1 + 0.9 * np.log(0.9), abs=1e-6)
    assert excess_aurc(correct, correct) == 0


def test_excess_is_what_a_wrong_order_costs():
    # Mistakes at ranks 1 and 4 of 4 instead of 3 and 4.
    found = excess_aurc(np.array([4.0, 3.0, 2.0, 1.0]), np.array([0, 1, 1, 0]))
    assert found == pytest.approx(((1 + 1 / 2 + 1 / 3 + 2 / 4) - (1 / 3 + 2 / 4)) / 4)


def test_bad_scores_are_an_error():
    for score, correct in [([], []), ([1.0], [True, False]), ([[1.0]], [True])]:
        with pytest.raises(ValueError, match="scores for"):
            risk_coverage(np.array(score), np.array(correct))
    with pytest.raises(ValueError, match="NaN"):
        aurc(np.array([1.0, np.nan]), np.array([True, False]))


# choose_p


def test_the_chosen_norm_has_the_least_area():
    logits = random_logits(9, classes=20)
    labels = np.where(np.random.RandomState(0).uniform(size=300) < 0.7, logits.argmax(1), 0)
    correct = logits.argmax(1) == labels
    areas = [aurc(normalised_score(logits, p), correct) for p in NORMS]
    assert choose_p(logits, labels) == NORMS[int(np.argmin(areas))]


def test_of_equal_norms_the_smallest_is_chosen():
    logits = random_logits(10)
    assert choose_p(logits, logits.argmax(1)) == 1
    assert choose_p(logits, logits.argmin(1)) == 1
    assert choose_p(random_logits(11, classes=2), np.arange(300) % 2) == 1
