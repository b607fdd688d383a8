"""Intervals and tests for scores: one run, two runs on the same items, items in clusters.

Coverage of the intervals is checked by simulation in tests/evaluate/test_stats.py. All
functions take plain sequences, return plain floats, and are deterministic; nothing here rounds.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray  # scores of items


@dataclass(frozen=True)
class Interval:
    """A confidence interval, ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired comparison on `n` items: mean `after` minus mean `before`, its interval and p."""

    n: int
    before: float
    after: float
    gain: float
    low: float
    high: float
    p_value: float


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927); never leaves [0, 1], sound for small n.

    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    z = _z(level)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_interval(
    values: Values, seed: int = 0, level: float = 0.95, resamples: int = 5_000
) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), seeded; for scores that are not 0 or 1.

    Resamples are drawn in chunks, so memory stays below 8 MB plus one row of `values`.
    Raises ValueError for no values.
    """
    array = _values(values)
    generator = np.random.default_rng(seed)
    chunk = max(1, 1_000_000 // len(array))
    means: list[np.ndarray] = []
    for start in range(0, resamples, chunk):
        shape = (min(chunk, resamples - start), len(array))
        means.append(array[generator.integers(0, len(array), shape)].mean(axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(low), float(high))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Interval of a mean score: Wilson where every value is 0 or 1, else bootstrap (seed 0)."""
    array = _values(values)
    if _binary(array):
        return wilson_interval(int(array.sum()), len(array), level)
    return bootstrap_interval(array, level=level)


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """Gain on the same items, `before[i]` and `after[i]` belonging to item i.

    For 0/1 scores the interval is Newcombe's square-and-add method with correlation (1998,
    Statistics in Medicine 17:2635, method 10) and p is McNemar's exact; otherwise both come from
    the paired t statistic, and where items share `clusters`, from Student's t over these. Raises
    ValueError for unequal lengths or no items.
    """
    first, second = _values(before), _values(after)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} items before, {len(second)} after: pair them by id")
    if clusters is not None and 1 < len(set(clusters)) < len(first):
        error, freedom = standard_error(second - first, clusters), len(set(clusters)) - 1
        interval, p_value = _student(float((second - first).mean()), error, freedom, level)
    elif _binary(first) and _binary(second):
        interval, p_value = _newcombe(first, second, level), mcnemar_p(first, second)
    else:
        interval, p_value = _paired_t(second - first, level)
    means = float(first.mean()), float(second.mean())
    gain = float((second - first).mean())
    return Difference(len(first), *means, gain, interval.low, interval.high, p_value)


def mcnemar_p(before: Values, after: Values) -> float:
    """Exact two-sided McNemar p: are broken and fixed items equally likely? 1.0 if neither."""
    fixed, broken = _discordant(np.asarray(before), np.asarray(after))
    if fixed + broken == 0:
        return 1.0
    return float(min(1.0, 2 * stats.binom.cdf(min(fixed, broken), fixed + broken, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests corrected so that one false alarm in all has that probability.

    The step-down method of Holm (1979), Scandinavian Journal of Statistics 6:65; order is kept.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def standard_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean; items with equal `clusters` (one passage) may be correlated.

    Clustered: sqrt(G/(G-1) * sum over clusters of (sum of residuals)^2) / n (Liang and Zeger
    1986). Raises ValueError with fewer than two values or clusters.
    """
    array = _values(values)
    labels = list(range(len(array))) if clusters is None else list(clusters)
    if len(labels) != len(array):
        raise ValueError(f"{len(array)} values but {len(labels)} cluster labels")
    index = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    if len(index) < 2:
        raise ValueError("a standard error needs at least two values, in two clusters")
    sums = np.zeros(len(index))
    np.add.at(sums, [index[label] for label in labels], array - array.mean())
    return math.sqrt(len(index) / (len(index) - 1) * float(sums @ sums)) / len(array)


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], level: float = 0.95
) -> Interval:
    """Interval of a mean score in [0, 1] whose items come in clusters: Student's t over clusters.

    Where clusters say nothing of the spread (fewer than two, or no spread at all) it is that of
    `mean_interval`.
    """
    array = _values(values)
    plain = mean_interval(values, level)
    count = len(set(clusters))
    if count < 2:
        return plain
    error = standard_error(values, clusters)
    if error == 0:
        return plain
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    mean = float(array.mean())
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def n_for_difference(
    difference: float, discordant: float, power: float = 0.8, level: float = 0.95
) -> int:
    """Items needed to see a paired `difference` of proportions (Connor 1987, McNemar's test).

    `discordant` is the share of items on which the two runs disagree, at least |difference|;
    for two independent runs of accuracy p it is about 2p(1-p). Raises ValueError otherwise.
    """
    gap = abs(difference)
    if not 0 < gap <= discordant <= 1:
        raise ValueError(f"a difference of {difference} needs 0 < |difference| <= discordant <= 1")
    wanted = _z(level) * math.sqrt(discordant)
    wanted += stats.norm.ppf(power) * math.sqrt(discordant - gap**2)
    return math.ceil((wanted / gap) ** 2)


def _newcombe(before: np.ndarray, after: np.ndarray, level: float) -> Interval:
    n = len(before)
    first, second = float(before.mean()), float(after.mean())
    one = wilson_interval(int(before.sum()), n, level)
    two = wilson_interval(int(after.sum()), n, level)
    phi = _phi(before, after)
    down, up = (second - two.low, one.high - first), (two.high - second, first - one.low)
    low = second - first - _square_and_add(*down, phi)
    return Interval(low, second - first + _square_and_add(*up, phi))


def _square_and_add(one: float, two: float, phi: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * two + two**2))


def _phi(before: np.ndarray, after: np.ndarray) -> float:
    """Correlation of two 0/1 vectors, a positive one shrunk by Newcombe's continuity correction."""
    n, rights = len(before), (before.sum(), after.sum())
    scale = math.sqrt(math.prod(float(right * (n - right)) for right in rights))
    if scale == 0:
        return 0.0
    fixed, broken = _discordant(before, after)
    both = float((before * after).sum())
    cross = both * (n - both - fixed - broken) - fixed * broken
    return (max(cross - n / 2, 0.0) if cross > 0 else cross) / scale


def _discordant(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """(fixed, broken): wrong then right, right then wrong."""
    return int((after > before).sum()), int((before > after).sum())


def _paired_t(gains: np.ndarray, level: float) -> tuple[Interval, float]:
    """Student's t over the per-item gains; one item says nothing of the spread."""
    n = len(gains)
    if n < 2:
        return Interval(-math.inf, math.inf), 1.0
    return _student(float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(n), n - 1, level)


def _student(mean: float, error: float, freedom: int, level: float) -> tuple[Interval, float]:
    if error == 0:
        return Interval(mean, mean), float(mean == 0)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Interval(mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, freedom))


def _values(values: Values) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError("at least one value is needed")
    return array


def _binary(array: np.ndarray) -> bool:
    return bool(np.isin(array, (0.0, 1.0)).all())


def _z(level: float) -> float:
    return float(stats.norm.ppf((1 + level) / 2))
