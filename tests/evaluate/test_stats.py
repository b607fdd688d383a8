"""Statistics against scipy, hand computation and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from selfevo_jax.evaluate import stats


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (1, 1), (150, 300), (299, 300)])
def test_wilson_equals_scipy(k, n):
    expected = reference.binomtest(k, n).proportion_ci(0.95, method="wilson")
    got = stats.wilson_interval(k, n)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="successes"):
        stats.wilson_interval(k, n)


def test_bootstrap_is_seeded_and_near_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=200)
    got = stats.bootstrap_interval(values, seed=3)
    assert got == stats.bootstrap_interval(values, seed=3)
    assert got != stats.bootstrap_interval(values, seed=4)
    expected = reference.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = expected.high - expected.low
    assert abs(got.low - expected.low) < 0.05 * width
    assert abs(got.high - expected.high) < 0.05 * width


def test_mcnemar_equals_the_binomial_test():
    for fixed, broken in [(0, 0), (5, 0), (9, 3), (3, 9), (40, 41)]:
        before = [0] * fixed + [1] * broken + [1] * 10
        after = [1] * fixed + [0] * broken + [1] * 10
        total = fixed + broken
        expected = reference.binomtest(fixed, total).pvalue if total else 1.0
        assert stats.mcnemar_p(before, after) == pytest.approx(expected, abs=1e-12)


def test_paired_t_for_graded_scores_equals_scipy():
    generator = np.random.default_rng(0)
    before, after = generator.random(50), generator.random(50)
    got = stats.paired_difference(before, after)
    expected = reference.ttest_rel(after, before)
    interval = expected.confidence_interval(0.95)
    assert (got.low, got.high, got.p_value) == pytest.approx(
        (interval.low, interval.high, expected.pvalue), abs=1e-12
    )
    assert got.gain == pytest.approx(after.mean() - before.mean())


def test_newcombe_by_hand():
    """a=3 right twice, b=1 broken, c=4 fixed, d=2: Newcombe's formula written out."""
    before = [1] * 3 + [1] + [0] * 4 + [0] * 2
    after = [1] * 3 + [0] + [1] * 4 + [0] * 2
    got = stats.paired_difference(before, after)
    l1, u1 = reference.binomtest(7, 10).proportion_ci(method="wilson")
    l2, u2 = reference.binomtest(4, 10).proportion_ci(method="wilson")
    phi = max(3 * 2 - 1 * 4 - 10 / 2, 0) / math.sqrt(4 * 6 * 7 * 3)  # corrected to 0
    low = 0.3 - math.sqrt((0.7 - l1) ** 2 - 2 * phi * (0.7 - l1) * (u2 - 0.4) + (u2 - 0.4) ** 2)
    high = 0.3 + math.sqrt((u1 - 0.7) ** 2 - 2 * phi * (u1 - 0.7) * (0.4 - l2) + (0.4 - l2) ** 2)
    assert (got.gain, got.low, got.high) == pytest.approx((0.3, low, high), abs=1e-12)


def test_newcombe_uses_the_correlation():
    """The same marginals with strong agreement give a narrower interval than with none."""
    same = stats.paired_difference([1] * 50 + [0] * 50, [1] * 60 + [0] * 40)
    before, after = [1] * 50 + [0] * 50, [1] * 30 + [0] * 20 + [1] * 30 + [0] * 20
    independent = stats.paired_difference(before, after)
    assert same.gain == pytest.approx(independent.gain)
    assert same.high - same.low < 0.65 * (independent.high - independent.low)


@pytest.mark.parametrize(
    ("n", "both", "broken", "fixed"),
    [(300, 0.30, 0.05, 0.12), (300, 0.05, 0.02, 0.03), (60, 0.5, 0.1, 0.1), (300, 0.9, 0.01, 0.05)],
)
def test_paired_interval_covers_95_of_100(n, both, broken, fixed):
    generator = np.random.default_rng(7)
    cells = [both, broken, fixed, 1 - both - broken - fixed]
    covered = 0
    for _ in range(1000):
        counts = generator.multinomial(n, cells)
        before = np.repeat([1, 1, 0, 0], counts)
        after = np.repeat([1, 0, 1, 0], counts)
        got = stats.paired_difference(before, after)
        covered += got.low <= fixed - broken <= got.high
    assert 0.93 <= covered / 1000 <= 0.99


def test_wilson_covers_95_of_100():
    generator = np.random.default_rng(5)
    draws = [stats.wilson_interval(int(k), 300) for k in generator.binomial(300, 0.2, size=2000)]
    assert 0.93 <= np.mean([i.low <= 0.2 <= i.high for i in draws]) <= 0.97


def test_paired_difference_edges():
    with pytest.raises(ValueError, match="pair them"):
        stats.paired_difference([1], [1, 0])
    with pytest.raises(ValueError, match="at least one"):
        stats.paired_difference([], [])
    nothing = stats.paired_difference([1, 0, 1], [1, 0, 1])
    assert (nothing.gain, nothing.p_value) == (0.0, 1.0)
    assert nothing.low < 0 < nothing.high


def test_standard_error_plain_and_clustered():
    generator = np.random.default_rng(2)
    values = generator.random(40)
    assert stats.standard_error(values) == pytest.approx(reference.sem(values), abs=1e-12)
    clusters = np.repeat(np.arange(8), 5)
    residual = values - values.mean()
    meat = sum(np.outer(residual[clusters == g].sum(), residual[clusters == g].sum())
               for g in range(8))  # fmt: skip
    sandwich = math.sqrt(8 / 7 * float(meat[0, 0]) / 40**2)  # OLS on a constant, cluster-robust
    assert stats.standard_error(values, list(clusters)) == pytest.approx(sandwich, abs=1e-12)
    doubled = np.repeat(values, 2)
    assert stats.standard_error(doubled, list(np.repeat(np.arange(40), 2))) == pytest.approx(
        reference.sem(values), abs=1e-12
    )
    with pytest.raises(ValueError, match="two"):
        stats.standard_error([1.0, 0.0], ["x", "x"])


def test_power_by_simulation():
    """n_for_difference gives 80 % power within the simulation's error."""
    fixed, broken = 0.12, 0.06
    n = stats.n_for_difference(0.06, 0.18)
    generator = np.random.default_rng(3)
    seen = 0
    for _ in range(1500):
        b, c = generator.multinomial(n, [broken, fixed, 1 - fixed - broken])[:2]
        seen += (c - b) ** 2 / (b + c) > reference.chi2.ppf(0.95, 1)
    assert 0.76 <= seen / 1500 <= 0.85
    assert stats.n_for_difference(0.02, 0.2) > 3000
    with pytest.raises(ValueError, match="discordant"):
        stats.n_for_difference(0.2, 0.1)


def test_holm_by_hand():
    """Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03; and 1 x 0.04 may not be below the one before."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_a_paired_interval_over_clusters_covers_95_of_100():
    """Gains that articles share: as independent questions one interval in five would miss."""
    draw = np.random.default_rng(5)
    names = np.repeat(np.arange(20), 50)
    covered = plain = 0
    for _ in range(300):
        shared = draw.normal(0, 0.1, 20)[names]
        before = (draw.random(1000) < 0.5).astype(float)
        after = (draw.random(1000) < 0.5 + shared).astype(float)
        found = stats.paired_difference(before, after, clusters=names.tolist())
        covered += found.low <= 0 <= found.high
        alone = stats.paired_difference(before, after)
        plain += alone.low <= 0 <= alone.high
    assert 0.91 <= covered / 300 <= 0.98
    assert plain / 300 < 0.9


def test_clusters_of_one_are_no_clusters():
    one, other = [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]
    assert stats.paired_difference(one, other, clusters=list("abcd")) == stats.paired_difference(
        one, other
    )
