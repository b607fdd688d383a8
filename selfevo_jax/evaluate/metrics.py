"""Figures of the published systems that are more than the mean of a score, as pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CRITERIA = ("accuracy", "completeness", "relevance", "coherence", "reliability")


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that one of `k` replies passes, from `n` of which `right` did; unbiased.

    Chen et al. 2021, equation 1: 1 - C(n - c, k) / C(n, k). Raises ValueError unless
    0 <= right <= n and 1 <= k <= n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} replies, {right} of them right")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def best_threshold(
    scores: Sequence[float], answerable: Sequence[bool], doubts: Sequence[float]
) -> tuple[list[float], float | None]:
    """Scores with the least certain replies taken back, as many as is best; SQuAD 2.0's best_*.

    The replies with a no-answer score `doubts` up to the threshold stand; the others become "no
    answer", which is right where the question has none. Returns the scores and the threshold, None
    where no reply stands. Among equal ones the least threshold wins, as in the official script.
    """
    order = sorted(range(len(doubts)), key=doubts.__getitem__)
    taken_back = [float(not has) for has in answerable]
    now = best = sum(taken_back)
    standing = 0
    for count, place in enumerate(order, start=1):
        now += scores[place] - taken_back[place]
        if now > best + 1e-9:
            best, standing = now, count
    kept = set(order[:standing])
    found = [scores[n] if n in kept else taken_back[n] for n in range(len(scores))]
    return found, doubts[order[standing - 1]] if standing else None


@dataclass(frozen=True)
class CriteriaTable:
    """METEOR's table: by model and criterion the mean score and the share; the overall score.

    A model's share of a criterion is the part of the questions on which it scored highest, ties
    split evenly, so the shares of all models add up to 1. Overall is the mean of its means.
    """

    n: int
    means: Mapping[str, Mapping[str, float]]
    shares: Mapping[str, Mapping[str, float]]
    overall: Mapping[str, float]


def criteria_table(
    rows: Sequence[Mapping[str, Mapping[str, float]]], criteria: Sequence[str] = CRITERIA
) -> CriteriaTable:
    """Aggregates judged questions: each row maps model -> criterion -> score.

    METEOR's columns are pairwise preferences that add up to 100 %, and its overall score has no
    published rule; the rules here are ours. Raises ValueError for no rows, differing models or a
    missing score: a criterion that a judge left out is never the lowest grade.
    """
    if not rows:
        raise ValueError("no judged questions")
    models = list(rows[0])
    for number, row in enumerate(rows):
        if set(row) != set(models):
            raise ValueError(f"row {number} judges {sorted(row)}, the first {sorted(models)}")
        missing = [(m, c) for m in models for c in criteria if c not in row[m]]
        if missing:
            raise ValueError(f"row {number} has no {missing[0][1]} of {missing[0][0]}")
    means = {m: {c: _mean([row[m][c] for row in rows]) for c in criteria} for m in models}
    shares = {m: {c: _mean([_win(row, m, c) for row in rows]) for c in criteria} for m in models}
    overall = {m: _mean(list(means[m].values())) for m in models}
    return CriteriaTable(len(rows), means, shares, overall)


def _win(row: Mapping[str, Mapping[str, float]], model: str, criterion: str) -> float:
    """The model's part of this question's one point: all of it, or split among the best."""
    scores = [grades[criterion] for grades in row.values()]
    best = max(scores)
    return (row[model][criterion] == best) / scores.count(best)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
