"""From comparisons to scores, rankings and win rates. Pure functions over plain values.

Intervals are put on these figures where results are shown (evaluate/judged.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfevo_jax.judge.pairwise import FAILURE, FIRST, SECOND, TIE, Comparison


@dataclass(frozen=True)
class Rate:
    """`hits` of `n`."""

    hits: int
    n: int

    @property
    def share(self) -> float | None:
        """hits / n; None of nothing."""
        return self.hits / self.n if self.n else None


def candidate_scores(
    names: Iterable[str], compared: Iterable[tuple[str, str, Comparison]]
) -> dict[str, float]:
    """The mean probability with which each candidate is better than those it was compared with.

    `compared` holds (first, second, comparison). Both orders are in a comparison's p_first, so a
    liking for a place averages out (RefEval, Shi et al. 2026). Failures count for nobody; a
    candidate all of whose comparisons failed has no score.
    """
    wins: dict[str, list[float]] = {name: [] for name in names}
    for first, second, comparison in compared:
        if comparison.p_first is not None:
            wins[first].append(comparison.p_first)
            wins[second].append(1.0 - comparison.p_first)
    return {name: sum(found) / len(found) for name, found in wins.items() if found}


def best_and_worst(
    scores: Mapping[str, float], least_gap: float = 0.0, older: Collection[str] = ()
) -> tuple[str, str] | None:
    """(best, worst) candidate, ties to the earlier; None unless they differ by over `least_gap`.

    Where there are `older` candidates, the best of the others and the worst of these.
    """
    newer = [name for name in scores if name not in older]
    lower = [name for name in scores if name in older] if older else newer
    if not (newer and lower):
        return None
    best, worst = max(newer, key=scores.__getitem__), min(lower, key=scores.__getitem__)
    return (best, worst) if scores[best] - scores[worst] > least_gap else None


@dataclass(frozen=True)
class Wins:
    """How the first outputs fared against the second ones.

    `points` has 1, 0.5 (tie) or 0 for every contest that did not fail, `chances` its p_first;
    `win_rate` is the mean of the one, `chance` of the other (AlpacaEval's way of counting).
    """

    wins: int
    losses: int
    ties: int
    failures: int
    points: tuple[float, ...]
    chances: tuple[float, ...]

    @property
    def win_rate(self) -> float | None:
        """Mean points; None when every contest failed."""
        return sum(self.points) / len(self.points) if self.points else None

    @property
    def chance(self) -> float | None:
        """Mean probability of the first output."""
        return sum(self.chances) / len(self.chances) if self.chances else None


def count_wins(comparisons: Iterable[Comparison]) -> Wins:
    """Wins of the first outputs; failures are counted apart and get no points."""
    counts: Counter[str] = Counter()
    points, chances = [], []
    for comparison in comparisons:
        counts[comparison.verdict] += 1
        if comparison.p_first is not None:
            points.append({FIRST: 1.0, TIE: 0.5, SECOND: 0.0}[comparison.verdict])
            chances.append(comparison.p_first)
    return Wins(
        counts[FIRST], counts[SECOND], counts[TIE], counts[FAILURE], tuple(points), tuple(chances)
    )


def length_controlled(chances: Sequence[float], length_gaps: Sequence[float]) -> float:
    """The mean chance of the first output if both outputs were equally long: see `fit_length`.

    Raises ValueError for unequal lengths or no contests.
    """
    if len(chances) != len(length_gaps) or not len(chances):
        raise ValueError(f"{len(chances)} chances and {len(length_gaps)} length gaps")
    theta, _ = fit_length(np.asarray(chances), np.asarray(length_gaps), np.zeros(len(chances)))
    return 1 / (1 + math.exp(-theta))


def fit_length(chances: np.ndarray, gaps: np.ndarray, gamma: np.ndarray) -> tuple[float, float]:
    """(theta, phi) of logit p = theta + phi * tanh(gap / standard deviation of gaps) + gamma.

    Equation 1 of length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475), fitted by
    logistic regression on the chances as soft labels. `gaps[i]` is the length of the output whose
    chance it is less the other's, `gamma[i]` the difficulty of the instruction in logits; all [n].
    A small ridge on phi keeps it finite where length alone decides everything.
    """
    scale = float(gaps.std()) or 1.0
    design = np.stack([np.ones(len(gaps)), np.tanh(gaps / scale)], axis=1)
    target = np.clip(chances, 1e-4, 1 - 1e-4)
    ridge = np.diag([1e-6, 1e-4 * len(gaps)])
    weights = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-(design @ weights + gamma)))
        slope = design.T @ (p - target) + ridge @ weights
        curve = design.T @ (design * (p * (1 - p))[:, None]) + ridge
        step = np.linalg.solve(curve, slope)
        weights -= step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-10:
            break
    return float(weights[0]), float(weights[1])
