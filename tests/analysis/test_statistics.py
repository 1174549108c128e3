"""Intervals, tests and verdicts: by hand, against scipy.stats, and on data whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lsexp.analysis.calibration import debiased_ece, ece
from lsexp.analysis.statistics import (
    Interval,
    accuracy_half_width,
    groups_of,
    holm,
    over_both,
    over_both_of,
    over_both_of_sums,
    over_examples,
    over_seeds,
    paired,
    smallest_visible_difference,
    verdict,
)


def rng(seed):
    return np.random.RandomState(seed)


def covers(interval, truth):
    return interval.low <= truth <= interval.high


def within_binomial_error(found, expected, count, errors=3.3):
    """A frequency of `count` simulations; 3.3 standard errors fail one correct test in 1,000."""
    return abs(found - expected) <= errors * math.sqrt(expected * (1 - expected) / count)


def crossed(random, count, seeds, examples, seed_sd, example_sd, residual_sd):
    """`count` sets of scores [S, N] of mean 0: seed + example + residual."""
    return (
        seed_sd * random.standard_normal((count, seeds, 1))
        + example_sd * random.standard_normal((count, 1, examples))
        + residual_sd * random.standard_normal((count, seeds, examples))
    )


# over_seeds


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_over_seeds_is_the_interval_of_scipys_t_test(n):
    values = 0.9 + 0.01 * rng(n).standard_normal(n)
    found = over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert (found.value, found.n, found.over) == (pytest.approx(values.mean()), n, "seeds")


def test_over_seeds_by_hand():
    # Standard deviation 1 of 1, 2, 3; t(2) = 4.30265; 4.30265 / sqrt 3 = 2.48414.
    found = over_seeds(np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx((2.0, 2 - 2.48414, 2 + 2.48414, 3, "seeds"), abs=1e-5)


def test_one_seed_has_no_interval():
    assert over_seeds(np.array([0.5])) == (0.5, None, None, 1, "seeds")
    assert over_both(np.array([[1, 0, 1, 0]])) == (0.5, None, None, 1, "both")


def test_values_without_spread_have_no_interval_even_when_rounding_moves_them():
    assert over_seeds(np.full(5, 0.1)).low is None
    values, baseline = np.array([0.3, 0.9, 0.2]), np.array([0.2, 0.8, 0.1])
    assert np.ptp(values - baseline) > 0
    found = paired(values, baseline).difference
    assert (found.value, found.low, found.high) == (pytest.approx(0.1), None, None)


def test_intervals_move_and_stretch_with_the_values_and_do_not_mind_their_order():
    values = rng(1).standard_normal(5)
    found = over_seeds(values)
    for changed, a, b in [
        (values[::-1], 1, 0),
        (values + 100, 1, 100),
        (3 * values, 3, 0),
    ]:
        expected = (a * found.value + b, a * found.low + b, a * found.high + b)
        assert over_seeds(changed)[:3] == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_seed_is_not_dropped_silently(bad):
    with pytest.raises(ValueError, match="diverged"):
        over_seeds(np.array([0.9, bad, 0.8]))
    with pytest.raises(ValueError, match="diverged"):
        over_both(np.array([[0.9, bad], [1, 0]]))
    with pytest.raises(ValueError, match="diverged"):
        paired(np.array([0.9, 0.8]), np.array([0.9, bad]))
    with pytest.raises(ValueError, match="diverged"):
        over_both_of(lambda seed, kept: bad, 2, 10)


def test_nothing_is_an_error():
    for function in (over_seeds, over_examples, over_both):
        with pytest.raises(ValueError, match="empty"):
            function(np.array([]))


@pytest.mark.parametrize("seeds", [3, 10])
def test_over_seeds_covers_the_mean_in_95_percent(seeds):
    values = 0.9 + 0.01 * rng(seeds).standard_normal((4000, seeds))
    found = np.mean([covers(over_seeds(v), 0.9) for v in values])
    assert within_binomial_error(found, 0.95, 4000)


# over_examples


def test_over_examples_is_the_interval_of_scipys_t_test_on_means_over_seeds():
    scores = rng(2).standard_normal((3, 40))
    found = over_examples(scores)
    expected = stats.ttest_1samp(scores.mean(axis=0), 0).confidence_interval(0.95)
    assert found == pytest.approx((scores.mean(), expected.low, expected.high, 40, "examples"))


def test_over_examples_of_one_seed_is_the_textbook_interval_of_an_accuracy():
    correct = np.zeros((1, 10_000))
    correct[0, :9000] = 1
    found = over_examples(correct)
    assert found.high - found.value == pytest.approx(1.96 * 0.003, rel=1e-3)


def test_copies_of_a_seed_do_not_narrow_the_interval_over_examples():
    scores = rng(3).standard_normal((1, 50))
    assert over_examples(np.repeat(scores, 9, axis=0)) == pytest.approx(over_examples(scores))


def test_a_test_set_without_a_mistake_has_no_interval():
    assert over_examples(np.ones((3, 100))) == (1.0, None, None, 100, "examples")
    assert over_both(np.ones((3, 100))) == (1.0, None, None, 3, "both")


@pytest.mark.parametrize("seeds", [1, 5])
def test_over_examples_covers_the_accuracy_of_these_seeds(seeds):
    # The networks are fixed: which example is how hard is drawn anew, not how good they are.
    random = rng(seeds)
    difficulty = random.beta(2, 0.5, size=(2000, 1, 500))  # mean .8
    correct = random.uniform(size=(2000, seeds, 500)) < difficulty
    found = np.mean([covers(over_examples(c), 0.8) for c in correct])
    assert within_binomial_error(found, 0.95, 2000)


# over_both


def test_over_both_by_hand():
    # Means of seeds .75, .75, .5 and of examples 2/3, 1, 1, 0 around 2/3. Mean squares: seeds
    # 4 * .0208333 = 1/12, examples 3 * .222222 = 2/3; the sum of squares 8/3 leaves 1/2 of
    # 1/6 + 2 for the residual, / 6 = 1/12. t(2) = 4.30265, t(3) = 3.18245.
    half = math.sqrt((4.30265**2 / 12 + 3.18245**2 * (2 / 3 - 1 / 12)) / 12)
    found = over_both(np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]]))
    expected = (2 / 3, 2 / 3 - half, 2 / 3 + half, 3, "both")
    assert found == pytest.approx(expected, abs=1e-5)


def test_over_both_is_over_seeds_where_examples_do_not_vary():
    values = np.array([0.1, 0.4, 0.2])
    scores = np.repeat(values[:, None], 30, axis=1)
    assert over_both(scores)[:3] == pytest.approx(over_seeds(values)[:3])


def test_over_both_is_over_examples_where_seeds_agree():
    scores = np.repeat(rng(4).standard_normal((1, 30)), 4, axis=0)
    assert over_both(scores)[:3] == pytest.approx(over_examples(scores)[:3])


def test_over_both_is_over_examples_where_seeds_agree_on_the_mean_by_chance():
    scores = crossed(rng(19), 1, 3, 40, 0, 1, 1)[0]
    scores -= scores.mean(axis=1, keepdims=True)
    assert over_both(scores)[:3] == pytest.approx(over_examples(scores)[:3], abs=1e-12)


@pytest.mark.parametrize("case", range(20))
def test_over_both_is_never_narrower_than_over_either(case):
    scores = crossed(rng(case), 1, 3, 20, *rng(case).uniform(size=3))[0]
    both, seeds = over_both(scores), over_seeds(scores.mean(axis=1))
    examples = over_examples(scores)
    slack = 1e-12
    assert both.low <= min(seeds.low, examples.low) + slack
    assert both.high >= max(seeds.high, examples.high) - slack


def test_over_both_does_not_mind_order_and_moves_and_stretches_with_the_scores():
    scores = crossed(rng(5), 1, 4, 25, 1, 1, 1)[0]
    found = over_both(scores)
    assert over_both(scores[rng(0).permutation(4)][:, rng(1).permutation(25)]) == pytest.approx(
        found
    )
    moved = over_both(3 * scores - 7)
    assert moved[:3] == pytest.approx([3 * x - 7 for x in found[:3]])


# Variance of the mean: seed^2 / S + example^2 / N + residual^2 / SN; N = 100 here.
MIXTURES = [
    pytest.param(0.5, 0, 0.1, id="seeds"),
    pytest.param(0, 1, 0.1, id="examples"),
    pytest.param(0.2, 1, 1, id="all"),
    # Where Satterthwaite's degrees of freedom are too many with three seeds.
    pytest.param(0.4, 1, 0.1, id="mostly seeds"),
    pytest.param(0.05, 1, 2, id="residual"),
]


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize(("seed_sd", "example_sd", "residual_sd"), MIXTURES)
def test_over_both_covers_the_mean_of_a_crossed_design(seeds, seed_sd, example_sd, residual_sd):
    scores = crossed(rng(seeds), 2000, seeds, 100, seed_sd, example_sd, residual_sd)
    found = np.mean([covers(over_both(s), 0) for s in scores])
    # Conservative by design: not below 95 % beyond the error of 2,000 simulations (.0049 each).
    assert 0.95 - 3.3 * 0.0049 <= found <= 0.99


@pytest.mark.parametrize("seeds", [3, 10])
def test_over_both_covers_an_accuracy_where_the_intervals_over_one_source_do_not(seeds):
    # Right means that 1 + quality of the seed + ease of the example + luck is above 0.
    random = rng(seeds)
    latent = 1 + crossed(random, 1000, seeds, 200, 0.15, 1, 1)
    truth = stats.norm.cdf(1 / math.sqrt(0.15**2 + 2))
    correct = latent > 0
    both = np.mean([covers(over_both(c), truth) for c in correct])
    examples = np.mean([covers(over_examples(c), truth) for c in correct])
    over_s = [over_seeds(c.mean(axis=1)) for c in correct]
    only_seeds = np.mean([i.low is not None and covers(i, truth) for i in over_s])
    assert 0.95 - 3.3 * 0.0069 <= both <= 0.99
    assert examples < 0.93
    assert only_seeds < 0.93


# over_both_of


def test_the_jackknife_of_a_mean_gives_what_the_means_of_groups_give():
    scores = crossed(rng(6), 1, 3, 60, 1, 1, 1)[0]

    def mean(seed, kept):
        return scores[seed, kept].mean()

    assert over_both_of(mean, 3, 60) == pytest.approx(over_both(scores))
    groups = np.array_split(rng(0).permutation(60), 7)  # sizes 9 and 8
    of_groups = np.stack([scores[:, g].mean(axis=1) for g in groups], axis=1)
    found = over_both_of(mean, 3, 60, groups=7)
    expected = over_both(of_groups)
    assert found.value == pytest.approx(scores.mean())
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.1)


def test_the_value_is_the_mean_of_the_statistic_and_one_seed_has_no_interval():
    scores = rng(7).standard_normal((2, 50))

    def variance(seed, kept):
        return scores[seed, kept].var()

    expected = np.mean([scores[0].var(), scores[1].var()])
    assert over_both_of(variance, 2, 50).value == pytest.approx(expected)
    assert over_both_of(variance, 1, 50)[1:] == (None, None, 1, "both")


@pytest.mark.parametrize("arguments", [(0, 10, 5), (3, 1, 5), (3, 10, 1)])
def test_a_jackknife_of_too_little_is_an_error(arguments):
    with pytest.raises(ValueError, match="two examples and two groups"):
        over_both_of(lambda seed, kept: 0.0, *arguments)


@pytest.mark.parametrize(("seeds", "count"), [(3, 300), (10, 120)])
def test_over_both_of_covers_the_ece_of_seeds_that_are_overconfident_by_8_percent(seeds, count):
    random = rng(seeds)
    hits = 0
    for _ in range(count):
        confidence = random.uniform(0.5, 1, size=1000)
        gaps = 0.08 + 0.02 * random.standard_normal((seeds, 1))
        # Half of the luck is the example's, the same for all seeds.
        shared, own = random.uniform(size=1000), random.uniform(size=(seeds, 1000))
        luck = np.where(random.uniform(size=own.shape) < 0.5, shared, own)
        correct = luck < confidence - gaps

        def statistic(seed, kept, confidence=confidence, correct=correct):
            return debiased_ece(confidence[kept], correct[seed, kept])

        hits += covers(over_both_of(statistic, seeds, 1000, groups=15), 0.08)
    error = math.sqrt(0.95 * 0.05 / count)
    assert hits / count >= 0.95 - 3.3 * error


def test_over_both_of_takes_the_difference_of_two_settings():
    random = rng(8)
    probabilities = random.dirichlet([5, 1, 1], size=(2, 3, 200))
    labels = random.randint(3, size=200)

    def difference(seed, kept):
        of = [ece(p[seed, kept], labels[kept]) for p in probabilities]
        return of[1] - of[0]

    found = over_both_of(difference, 3, 200, groups=10)
    swapped = over_both_of(lambda seed, kept: -difference(seed, kept), 3, 200, groups=10)
    assert found[:3] == pytest.approx((-swapped.value, -swapped.high, -swapped.low))


@pytest.mark.parametrize(("examples", "groups"), [(1, 1), (5, 2), (7, 100), (1000, 100), (60, 7)])
def test_groups_are_of_like_size_and_drawn_alike(examples, groups):
    found = groups_of(examples, groups)
    sizes = np.bincount(found)
    assert len(sizes) == min(examples, groups)
    assert np.ptp(sizes) <= 1
    np.testing.assert_array_equal(found, groups_of(examples, groups))


@pytest.mark.parametrize("numbers", [(0, 5), (5, 0)])
def test_nothing_has_no_groups(numbers):
    with pytest.raises(ValueError, match="at least 1"):
        groups_of(*numbers)


def test_the_jackknife_of_sums_is_that_of_examples():
    scores = crossed(rng(9), 1, 3, 230, 1, 1, 1)[0]
    group = groups_of(230, groups=12)

    def variation(seed, kept):
        return scores[seed, kept].std() / np.abs(scores[seed, kept]).mean()

    def of_sums(sums):
        count, absolute, plain, squares = np.moveaxis(sums, -1, 0)
        return np.sqrt(squares / count - (plain / count) ** 2) / (absolute / count)

    sums = [
        [
            (out.sum(), np.abs(row[out]).sum(), row[out].sum(), (row[out] ** 2).sum())
            for out in (group == g for g in range(12))
        ]
        for row in scores
    ]
    found = over_both_of_sums(of_sums, np.array(sums), group)
    expected = over_both_of(variation, 3, 230, groups=12)
    assert found[:3] == pytest.approx(expected[:3], rel=1e-11)
    assert found[3:] == expected[3:]


@pytest.mark.parametrize(("shape", "group"), [((0, 2, 1), [0, 1]), ((3, 1, 1), [0]), ((3, 2), [0])])
def test_a_jackknife_of_too_few_sums_is_an_error(shape, group):
    with pytest.raises(ValueError, match="a seed and two groups"):
        over_both_of_sums(lambda sums: sums[..., 0], np.ones(shape), np.array(group))


# paired


def test_paired_is_scipys_paired_t_interval_and_pearsons_correlation():
    random = rng(9)
    baseline = random.standard_normal(7)
    values = baseline + 0.3 + 0.2 * random.standard_normal(7)
    found = paired(values, baseline)
    expected = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert found.difference == pytest.approx(
        ((values - baseline).mean(), expected.low, expected.high, 7, "seeds")
    )
    assert found.correlation == pytest.approx(stats.pearsonr(values, baseline).statistic)


@pytest.mark.parametrize("n", [6, 9])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_sign_flips_are_scipys_exact_permutation_test(n, shift):
    differences = shift + rng(n).standard_normal(n)
    expected = stats.permutation_test(
        (differences,), lambda x: abs(x.sum()), permutation_type="samples", alternative="greater"
    )
    found = paired(5 + differences, np.full(n, 5.0)).p
    assert found == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize(("n", "p"), [(6, 2 / 2**6), (10, 2 / 2**10), (16, 2 / 2**16)])
def test_the_smallest_p_is_that_of_all_signs_alike(n, p):
    differences = 1 + rng(n).uniform(size=n)
    assert paired(differences, np.zeros(n)).p == p
    assert paired(-differences, np.zeros(n)).p == p


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_below_six_seeds_there_is_no_p(n):
    assert paired(np.arange(n) + 1.0, np.zeros(n)).p is None


def test_sign_flips_count_ties_with_the_observed_one_whatever_the_rounding():
    # Differences of .1 and .3 in six seeds: many patterns tie exactly on paper, not in floats.
    tenths = np.array([1, 3, 1, -1, 3, 1])
    ties = [
        abs(sum(s * d for s, d in zip(signs, tenths, strict=True))) >= 8
        for signs in itertools.product((-1, 1), repeat=6)
    ]
    baseline = np.array([0.7, 0.1, 0.3, 0.9, 0.6, 0.2])
    assert paired(baseline + tenths / 10, baseline).p == np.mean(ties)


def test_without_any_difference_p_is_1_and_nothing_is_decided():
    found = paired(np.arange(6.0), np.arange(6.0))
    assert found.p == 1
    assert found.difference == (0, None, None, 6, "seeds")
    assert found.correlation == pytest.approx(1)
    assert verdict(found.difference, "within", margin=0.1) == "inconclusive"


def test_beyond_16_seeds_signs_are_drawn_and_p_is_near_the_exact_one():
    differences = 0.3 + rng(10).standard_normal(16)
    # A zero difference adds to n and leaves the exact p as it is.
    exact = paired(differences, np.zeros(16)).p
    drawn = paired(np.append(differences, 0.0), np.zeros(17)).p
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 99_999))
    assert paired(np.append(differences, 0.0), np.zeros(17)).p == drawn
    # The observed pattern counts as one of 100,000: never 0.
    assert paired(np.ones(40), np.zeros(40)).p == 1e-5


def test_paired_does_not_mind_the_order_of_seeds_nor_what_they_share():
    random = rng(11)
    values, baseline, shared = random.standard_normal((3, 8))
    found = paired(values, baseline)
    order = random.permutation(8)
    moved = paired((values + shared)[order], (baseline + shared)[order])
    assert moved.difference == pytest.approx(found.difference)
    assert moved.p == found.p
    scaled = paired(1e-3 * values, 1e-3 * baseline)
    assert (scaled.p, scaled.correlation) == (found.p, pytest.approx(found.correlation))


def test_correlation_needs_three_seeds_and_two_that_vary():
    assert paired(np.array([1.0, 2.0]), np.array([1.0, 3.0])).correlation is None
    assert paired(np.array([1.0, 2.0, 4.0]), np.full(3, 0.1)).correlation is None
    assert paired(np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.0, 0.0])).correlation == (
        pytest.approx(-1)
    )


def test_values_and_baseline_must_be_of_the_same_seeds():
    with pytest.raises(ValueError, match="3 values for 2"):
        paired(np.arange(3.0), np.arange(2.0))


def test_pairing_narrows_the_interval_by_what_the_seeds_share():
    random = rng(12)
    shared = random.standard_normal(10)
    values, baseline = shared + 0.1 * random.standard_normal((2, 10))
    found = paired(values, baseline)
    assert found.correlation > 0.95
    assert found.difference.high - found.difference.low < 0.3 * (
        over_seeds(values).high - over_seeds(values).low
    )


@pytest.mark.parametrize("n", [6, 10])
def test_the_sign_flip_test_keeps_its_size_and_sees_a_large_effect(n):
    random = rng(n)
    # Symmetric with heavy tails: no normal distribution is needed.
    null = random.standard_t(3, size=(2000, n))
    rejected = np.mean([paired(d, np.zeros(n)).p <= 0.05 for d in null])
    # 64 and 1,024 patterns: the largest attainable size below .05 is 2/64 or 50/1024.
    attainable = math.floor(0.05 * 2 ** (n - 1)) / 2 ** (n - 1)
    assert within_binomial_error(rejected, attainable, 2000)
    seen = np.mean([paired(3 + d, np.zeros(n)).p <= 0.05 for d in null[:500]])
    assert seen > 0.8


@pytest.mark.parametrize("seeds", [3, 10])
def test_paired_differences_cover_the_true_difference(seeds):
    random = rng(20 + seeds)
    shared = random.standard_normal((3000, seeds))
    values = shared + 0.5 + 0.3 * random.standard_normal((3000, seeds))
    found = np.mean(
        [covers(paired(v, b).difference, 0.5) for v, b in zip(values, shared, strict=True)]
    )
    assert within_binomial_error(found, 0.95, 3000)


# holm


def test_holm_on_a_known_example():
    # Holm's procedure on .01, .04, .03, .005: x 4, 3, 2, 1 in order of size, then monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stops_at_1_and_leaves_what_was_not_tested():
    assert holm([0.6, None, 0.5]) == [1.0, None, 1.0]
    assert holm([None, None]) == [None, None]
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p(bad):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        holm([0.5, bad])


def test_holm_follows_its_p_values_when_they_are_reordered_and_is_below_bonferroni():
    p = rng(13).uniform(size=8) ** 2
    found = np.array(holm(list(p)), dtype=float)
    order = rng(14).permutation(8)
    assert holm(list(p[order])) == pytest.approx(found[order])
    assert (found >= p).all()
    assert (found <= np.minimum(1, 8 * p) + 1e-15).all()


def test_holm_keeps_any_false_rejection_below_5_percent():
    random = rng(15)
    # Four settings against one baseline: their p are correlated through it.
    z = (random.standard_normal((2000, 4)) + random.standard_normal((2000, 1))) / math.sqrt(2)
    p = 2 * stats.norm.sf(np.abs(z))
    false = np.mean([min(holm(list(row))) < 0.05 for row in p])
    uncorrected = (p < 0.05).any(axis=1).mean()
    assert false <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / 2000)
    assert uncorrected > 0.1


# verdict


@pytest.mark.parametrize(
    ("direction", "margin", "low", "high", "expected"),
    [
        ("above", 0, 0.1, 0.2, "supported"),
        ("above", 0, -0.2, -0.1, "contradicted"),
        ("above", 0, -0.1, 0.1, "inconclusive"),
        ("above", 0, 0.0, 0.1, "inconclusive"),
        ("above", 0, -0.1, 0.0, "inconclusive"),
        ("above", 0.15, 0.1, 0.2, "inconclusive"),
        ("above", 0.05, 0.1, 0.2, "supported"),
        ("above", 0.3, 0.1, 0.2, "contradicted"),
        ("below", 0, -0.2, -0.1, "supported"),
        ("below", 0, 0.1, 0.2, "contradicted"),
        ("below", 0, -0.1, 0.1, "inconclusive"),
        ("below", 0.15, -0.2, -0.1, "inconclusive"),
        ("below", 0.3, -0.2, -0.1, "contradicted"),
        ("within", 0.3, -0.2, 0.1, "supported"),
        ("within", 0.2, -0.2, 0.1, "inconclusive"),
        ("within", 0.1, 0.2, 0.3, "contradicted"),
        ("within", 0.1, -0.3, -0.2, "contradicted"),
        ("within", 0.1, 0.05, 0.3, "inconclusive"),
        ("within", 0.1, -0.3, 0.3, "inconclusive"),
    ],
)
@pytest.mark.parametrize("over", ["seeds", "both"])
def test_verdict(direction, margin, low, high, expected, over):
    assert verdict(Interval((low + high) / 2, low, high, 3, over), direction, margin) == expected


def test_below_three_seeds_or_without_an_interval_it_is_inconclusive():
    assert verdict(Interval(5.0, 4.9, 5.1, 2, "seeds")) == "inconclusive"
    assert verdict(Interval(5.0, None, None, 1, "seeds")) == "inconclusive"
    assert verdict(Interval(5.0, None, None, 5, "seeds")) == "inconclusive"


def test_a_verdict_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="not over examples"):
        verdict(Interval(5.0, 4.9, 5.1, 1000, "examples"))
    interval = Interval(5.0, 4.9, 5.1, 5, "seeds")
    with pytest.raises(ValueError, match="direction"):
        verdict(interval, "up")
    for direction, margin in [("above", -1), ("within", 0), ("within", math.nan)]:
        with pytest.raises(ValueError, match="margin"):
            verdict(interval, direction, margin)


def test_equivalence_is_rarely_claimed_at_the_margin_and_mostly_where_there_is_none():
    random = rng(16)
    values = 0.5 * random.standard_normal((2000, 5))

    def frequencies(shift):
        found = [verdict(over_seeds(v + shift), "within", margin=1.0) for v in values]
        return {word: found.count(word) / 2000 for word in ("supported", "contradicted")}

    at_margin, inside, outside = frequencies(1.0), frequencies(0.0), frequencies(3.0)
    # The 95 % interval: one side of 2.5 %, where two one-sided tests would allow 5 %.
    for word in ("supported", "contradicted"):
        assert within_binomial_error(at_margin[word], 0.025, 2000)
    assert inside["supported"] > 0.8
    assert inside["contradicted"] < 0.01
    assert outside["contradicted"] > 0.95


def test_a_direction_is_wrongly_decided_in_at_most_5_percent_where_there_is_no_effect():
    values = rng(17).standard_normal((4000, 3))
    found = [verdict(over_seeds(v)) for v in values]
    for word in ("supported", "contradicted"):
        assert within_binomial_error(found.count(word) / 4000, 0.025, 4000)


# Resolution of a test set


def test_half_width_of_an_accuracy():
    assert accuracy_half_width(0.9, 10_000) == pytest.approx(1.96 * 0.003, rel=1e-3)
    assert accuracy_half_width(0.3, 50) == pytest.approx(accuracy_half_width(0.7, 50))
    # All of 100 right: Wilson's interval is 1 / (1 + z^2 / N) to 1, in all z^2 / (N + z^2).
    assert 2 * accuracy_half_width(1.0, 100) == pytest.approx(3.8415 / 103.8415, rel=1e-4)
    wilson = stats.binomtest(33, 40).proportion_ci(0.95, method="wilson")
    assert 2 * accuracy_half_width(33 / 40, 40) == pytest.approx(wilson.high - wilson.low)


def test_smallest_visible_difference_is_where_mcnemars_test_reaches_5_percent():
    # Of 10,000 examples on 500 exactly one is right: 1.96 sqrt(500) = 43.8 of them.
    found = smallest_visible_difference(0.05, 10_000)
    assert found * 10_000 == pytest.approx(43.83, abs=0.01)
    assert 2 * stats.norm.sf(found * 10_000 / math.sqrt(500)) == pytest.approx(0.05)
    assert smallest_visible_difference(0.0, 10) == 0


def test_a_difference_of_that_size_is_seen_in_half_the_cases_and_1_43_times_it_in_four_of_five():
    random = rng(18)
    examples, disagreement = 10_000, 0.05
    smallest = smallest_visible_difference(disagreement, examples)
    for factor, power in [(0, 0.05), (1, 0.5), (1.43, 0.8)]:
        true = factor * smallest
        better, worse, _ = random.multinomial(
            examples,
            [(disagreement + true) / 2, (disagreement - true) / 2, 1 - disagreement],
            size=4000,
        ).T
        z = np.abs(better - worse) / np.sqrt(better + worse)
        assert within_binomial_error((z > 1.96).mean(), power, 4000, errors=4)


def test_no_accuracy_and_no_examples_are_errors():
    for function in (accuracy_half_width, smallest_visible_difference):
        for fraction, examples in [(1.1, 10), (-0.1, 10), (math.nan, 10), (0.5, 0)]:
            with pytest.raises(ValueError, match="examples"):
                function(fraction, examples)
