"""Neural collapse: against dense linear algebra and all pairs, at collapse, invariances."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from lsexp.analysis import collapse

RNG = np.random.default_rng(0)
LABELS = np.arange(90) % 5
CENTRES = RNG.normal(size=(5, 12))
FEATURES = CENTRES[LABELS] + 0.4 * RNG.normal(size=(90, 12))
WEIGHT = RNG.normal(size=(5, 12))
MEASURES = {
    "nc1": collapse.nc1,
    "nc2": collapse.nc2,
    "nc3": lambda features, labels: collapse.nc3(features, labels, WEIGHT),
    "class_separation": collapse.class_separation,
}


def simplex(features=12):
    """Class means of equal lengths and angles."""
    turn, _ = np.linalg.qr(RNG.normal(size=(features, features)))
    return (np.eye(5) - 0.2) @ turn[:5]


def test_nc1_is_the_trace_with_the_pseudo_inverse():
    means = np.stack([FEATURES[k == LABELS].mean(0) for k in range(5)])
    within = np.mean([np.cov(FEATURES[k == LABELS].T, bias=True) for k in range(5)], axis=0)
    between = np.cov(means.T, bias=True)
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-9)) / 5
    assert collapse.nc1(FEATURES, LABELS) == pytest.approx(expected, rel=1e-8)


def test_at_collapse_all_are_at_their_ends():
    means = simplex()
    features = means[LABELS]
    assert collapse.nc1(features, LABELS) == pytest.approx(0, abs=1e-20)
    assert collapse.nc2(features, LABELS) == pytest.approx(0, abs=1e-12)
    assert collapse.nc3(features, LABELS, 7 * means + 3) == pytest.approx(0, abs=1e-12)
    assert collapse.class_separation(features, LABELS) == pytest.approx(1)


def test_opposite_weights_are_farthest():
    means = simplex()
    assert collapse.nc3(means[LABELS], LABELS, -means) == pytest.approx(2)


def test_a_longer_mean_breaks_the_simplex():
    means = simplex()
    means[0] *= 3
    assert collapse.nc2(means[LABELS], LABELS) > 0.1


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_scaling_features_and_the_order_of_examples_change_nothing(measure):
    before = measure(FEATURES, LABELS)
    assert measure(1000 * FEATURES, LABELS) == pytest.approx(before)
    order = RNG.permutation(90)
    assert measure(FEATURES[order], LABELS[order]) == pytest.approx(before)


@pytest.mark.parametrize("measure", [collapse.nc1, collapse.nc2], ids=["nc1", "nc2"])
def test_moving_and_turning_features_changes_nothing(measure):
    turn, _ = np.linalg.qr(RNG.normal(size=(12, 12)))
    moved = FEATURES @ turn + RNG.normal(size=12)
    assert measure(moved, LABELS) == pytest.approx(measure(FEATURES, LABELS))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_repeating_the_examples_of_a_class_changes_nothing(measure):
    more = np.concatenate([np.arange(90), np.flatnonzero(LABELS == 2)])
    assert measure(FEATURES[more], LABELS[more]) == pytest.approx(measure(FEATURES, LABELS))


def test_class_separation_is_that_of_all_pairs():
    distance = cdist(FEATURES, FEATURES, "cosine")
    within = np.mean([distance[np.ix_(k == LABELS, k == LABELS)].mean() for k in range(5)])
    total = distance.mean()  # classes of equal size
    assert collapse.class_separation(FEATURES, LABELS) == pytest.approx(1 - within / total)


def test_noise_that_the_classes_do_not_span_is_not_in_nc1():
    features = np.column_stack([FEATURES, np.zeros(90)])
    noise = RNG.normal(size=90)
    noise -= np.bincount(LABELS, noise)[LABELS] / 18  # no class mean moves
    noisy = np.column_stack([FEATURES, 10 * noise])
    assert collapse.nc1(noisy, LABELS) == pytest.approx(collapse.nc1(features, LABELS))


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("classes", [2, 10])
def test_gamma_of_smoothed_labels_is_eps(eps, classes):
    labels = np.arange(50) % classes
    smoothed = (1 - eps) * np.eye(classes)[labels] + eps / classes
    assert collapse.effective_smoothing(smoothed, labels) == pytest.approx(eps)


def test_gamma_of_uniform_probabilities_is_one():
    assert collapse.effective_smoothing(np.full((7, 5), 0.2), LABELS[:7]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (FEATURES, np.zeros(90), "two are needed"),
        (np.ones((90, 12)), LABELS, "all alike|one way"),
        (np.tile([0.1, 0.3, 0.7] * 4, (90, 1)), LABELS, "all alike|one way"),
    ],
)
@pytest.mark.parametrize("name", MEASURES)
def test_nothing_to_measure(name, features, labels, message):
    with pytest.raises(ValueError, match=message):
        MEASURES[name](features, labels)


def test_one_class_has_no_gamma():
    with pytest.raises(ValueError, match="two are needed"):
        collapse.effective_smoothing(np.ones((2, 1)), np.zeros(2, int))


@pytest.mark.parametrize("name", MEASURES)
def test_features_and_labels_that_do_not_fit_are_refused(name):
    for features, labels in ((FEATURES, LABELS[:1]), (FEATURES, LABELS[:, None])):
        with pytest.raises(ValueError, match="must be"):
            MEASURES[name](features, labels)


@pytest.mark.parametrize("labels", [[0, -1], [0, 2]])
def test_a_label_without_weights_is_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1"):
        collapse.nc3(np.eye(2), labels, np.eye(2))
