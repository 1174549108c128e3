"""gamma, and how alike two networks rank wrong classes."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from lsexp.analysis.distillation import gamma, wrong_class_agreement

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(50, 7))
LABELS = np.arange(50) % 7


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.9])
def test_an_ideal_smoothed_teacher_gives_its_eps(eps):
    targets = np.full((50, 7), eps / 7)
    targets[np.arange(50), LABELS] += 1 - eps
    assert gamma(np.log(targets) + 3, LABELS) == pytest.approx(eps)


def test_a_uniform_teacher_gives_1_and_a_sure_one_0():
    assert gamma(np.zeros((50, 7)), LABELS) == pytest.approx(1)
    assert gamma(100 * np.eye(7)[LABELS], LABELS) == pytest.approx(0, abs=1e-12)
    assert gamma(LOGITS, LABELS, 1e9) == pytest.approx(1, abs=1e-6)


def test_it_rises_with_the_temperature_of_a_teacher_that_is_right():
    right = LOGITS + 4 * np.eye(7)[LABELS]
    found = [gamma(right, LABELS, t) for t in (1, 2, 4, 8)]
    assert found == sorted(found)


def test_the_agreement_is_spearmans_rho_over_wrong_classes():
    others = LOGITS + RNG.normal(size=LOGITS.shape)
    expected = [
        spearmanr(np.delete(a, k), np.delete(b, k)).statistic
        for a, b, k in zip(LOGITS, others, LABELS, strict=True)
    ]
    assert wrong_class_agreement(LOGITS, others, LABELS) == pytest.approx(np.mean(expected))


def test_it_sees_order_only_and_not_the_label():
    others = LOGITS.copy()
    others[np.arange(50), LABELS] += 100
    assert wrong_class_agreement(LOGITS, 0.1 * others - 7, LABELS) == 1
    unrelated = RNG.normal(size=(5000, 7)), RNG.normal(size=(5000, 7)), np.arange(5000) % 7
    assert wrong_class_agreement(*unrelated) == pytest.approx(0, abs=0.02)
    with pytest.raises(ValueError, match="nothing to rank"):
        wrong_class_agreement(LOGITS[:, :2], LOGITS[:, :2], LABELS % 2)


@pytest.mark.parametrize("temperature", [0, -1, -0.5, np.nan, np.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match=f"finite and above 0, not {temperature}"):
        gamma(LOGITS, LABELS, temperature)


def test_any_temperature_above_0_has_a_gamma():
    wrong = (LOGITS.argmax(1) != LABELS).mean()
    for temperature in (1e-320, 1e-100):
        assert gamma(LOGITS, LABELS, temperature) == pytest.approx(wrong * 7 / 6)
    assert gamma(LOGITS, LABELS, 1e308) == pytest.approx(1)


def test_one_class_is_smoothed_in_no_way():
    with pytest.raises(ValueError, match="two are needed"):
        gamma(np.zeros((2, 1)), np.zeros(2, int))


@pytest.mark.parametrize("others", [LOGITS[:1], LOGITS[:, :6], LOGITS[0]])
def test_logits_of_two_shapes_do_not_agree(others):
    with pytest.raises(ValueError, match="must be of one shape"):
        wrong_class_agreement(LOGITS, others, LABELS)


def test_logits_that_are_nan_have_no_ranks():
    others = LOGITS.copy()
    others[3, 4] = np.nan
    for pair in ((LOGITS, others), (others, LOGITS)):
        with pytest.raises(ValueError, match="not finite"):
            wrong_class_agreement(*pair, LABELS)
