"""Figures of the published systems, against hand-made tables."""

import random
from itertools import combinations

import pytest

from selfevo_jax.evaluate.metrics import (
    best_threshold,
    criteria_table,
    pass_at_k,
)
from selfevo_jax.evaluate.stats import clustered_interval, mean_interval


@pytest.mark.parametrize(
    ("n", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (7, 1, 7)]
)
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n, right, k):
    draws = list(combinations(range(n), k))
    share = sum(min(draw) < right for draw in draws) / len(draws)
    assert pass_at_k(n, right, k) == pytest.approx(share)


@pytest.mark.parametrize(("n", "right", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_nonsense(n, right, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, right, k)


def test_shares_of_criteria_add_up_and_split_ties():
    rows = [
        {"with": {"accuracy": 8, "relevance": 9}, "without": {"accuracy": 6, "relevance": 9}},
        {"with": {"accuracy": 5, "relevance": 2}, "without": {"accuracy": 7, "relevance": 1}},
    ]
    table = criteria_table(rows, ("accuracy", "relevance"))
    assert table.shares["with"] == {"accuracy": 0.5, "relevance": 0.75}
    for criterion in ("accuracy", "relevance"):
        assert sum(table.shares[m][criterion] for m in table.shares) == 1.0
    assert table.means["without"] == {"accuracy": 6.5, "relevance": 5.0}
    assert table.overall["with"] == pytest.approx((6.5 + 5.5) / 2)


def test_a_missing_criterion_is_an_error_not_the_lowest_grade():
    rows = [{"a": {"accuracy": 8}, "b": {"accuracy": 6}}, {"a": {"accuracy": 8}, "b": {}}]
    with pytest.raises(ValueError, match="row 1 has no accuracy of b"):
        criteria_table(rows, ("accuracy",))
    with pytest.raises(ValueError, match="row 1 judges"):
        criteria_table([rows[0], {"a": {"accuracy": 1}}], ("accuracy",))


def test_clustered_intervals_cover_where_plain_ones_do_not():
    """Ten items of one passage that stand and fall together are one observation."""
    import numpy as np

    draw = np.random.default_rng(0)
    clustered = plain = 0
    for _ in range(200):
        values = np.repeat(draw.random(30) < 0.6, 10).astype(float).tolist()
        names = [n // 10 for n in range(300)]
        one, two = clustered_interval(values, names), mean_interval(values)
        clustered += one.low <= 0.6 <= one.high
        plain += two.low <= 0.6 <= two.high
    assert clustered / 200 > 0.9 > 0.6 > plain / 200
    assert clustered_interval([1.0, 0.0], ["a", "a"]) == mean_interval([1.0, 0.0])
    assert clustered_interval([1.0, 1.0], ["a", "b"]) == mean_interval([1.0, 1.0])


def test_the_best_threshold_by_hand():
    """Two questions without an answer are right to begin with; the surest reply adds one."""
    found, threshold = best_threshold(
        [1.0, 0.0, 0.0, 1.0], [True, True, False, False], [0.1, 0.2, 0.3, 0.9]
    )
    assert (found, threshold) == ([1.0, 0.0, 1.0, 1.0], 0.1)
    assert best_threshold([0.0, 0.4], [True, False], [0.5, 0.6]) == ([0.0, 1.0], None)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed):
    draw = random.Random(seed)
    n = 40
    scores = [draw.choice([0.0, 0.25, 1.0]) for _ in range(n)]
    answerable = [draw.random() < 0.6 for _ in range(n)]
    doubts = [draw.gauss(-3, 1) for _ in range(n)]
    found, threshold = best_threshold(scores, answerable, doubts)

    def at(limit):
        kept = zip(scores, answerable, doubts, strict=True)
        return sum(s if d <= limit else float(not a) for s, a, d in kept)

    totals = {limit: at(limit) for limit in [-100.0, *doubts]}
    assert sum(found) == pytest.approx(max(totals.values()))
    assert at(-100.0 if threshold is None else threshold) == pytest.approx(sum(found))
