"""Which questions to have answered next: acquisition strategies over a pool.

Uncertainty of the policy's own reply (Bhatt et al., 2024, arXiv:2401.06692): the most uncertain
first. Diversity of the questions' embeddings: k-centre greedy (Sener and Savarese, 2018,
arXiv:1708.00489) and facility location (greedy). All are pure; ties go to the earlier question.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from selfevo_jax.records import Example, Prompt, Row, Sample, Vector

# Strategy -> (statistic of a reply, +1 where large values are wanted).
UNCERTAINTY = {
    "entropy": ("mean_entropy", 1),
    "confidence": ("mean_logp", -1),
    "total_confidence": ("sum_logp", -1),
    "min_margin": ("min_margin", -1),
    "mean_margin": ("mean_margin", -1),
    "max_uncertainty": ("max_entropy", 1),
}
DIVERSITY = ("k_centre", "facility_location")
STRATEGIES = ("random", *UNCERTAINTY, *DIVERSITY)


def statistics(tokens: dict[str, np.ndarray]) -> dict[str, float]:
    """Token statistics of a reply in one number each: means and extremes over its tokens."""
    entropy, margin, logp = (np.asarray(tokens[n], float) for n in ("entropy", "margin", "logp"))
    return {
        "mean_entropy": float(entropy.mean()),
        "max_entropy": float(entropy.max()),
        "mean_margin": float(margin.mean()),
        "min_margin": float(margin.min()),
        "mean_logp": float(logp.mean()),
        "sum_logp": float(logp.sum()),
    }


def by_chance(rows: Sequence[Prompt], n: int, seed: int) -> list[Row]:
    """`n` questions of a seeded shuffle."""
    order = list(range(len(rows)))
    random.Random(f"acquire-{seed}").shuffle(order)
    return [_chosen(rows[i], rank, "random", 0.0) for rank, i in enumerate(order[:n])]


def by_uncertainty(rows: Sequence[tuple[Sample, Row, Prompt]], n: int, strategy: str) -> list[Row]:
    """The `n` questions whose reply the policy is least sure of."""
    statistic, sign = UNCERTAINTY[strategy]
    scores = np.array([sign * row.values[statistic] for _, row, _ in rows])
    order = np.argsort(-scores, kind="stable")[:n]
    return [
        _chosen(rows[i][-1], rank, strategy, sign * float(scores[i]))
        for rank, i in enumerate(order)
    ]


def by_diversity(
    rows: Sequence[tuple[Prompt, Vector]], labelled: Sequence[Example], n: int, strategy: str
) -> list[Row]:
    """The `n` questions that, with the labelled ones, cover the pool best."""
    known = {example.prompt_id for example in labelled}
    held = [i for i, (prompt, _) in enumerate(rows) if prompt.id in known]
    vectors = np.array([vector.values for _, vector in rows])
    picked = COVER[strategy](vectors, held, n)
    return [_chosen(rows[i][0], rank, strategy, score) for rank, (i, score) in enumerate(picked)]


def spread_over(rows: Sequence[tuple[Row, Vector]], n: int) -> list[Row]:
    """`n` of the chosen, the most uncertain first and then each far from those before it."""
    vectors = np.array([vector.values for _, vector in rows])
    places = [0, *(place for place, _ in k_centre(vectors, [0], n - 1))]
    return [
        Row.make(source_id=row.source_id, values=row.values | {"rank": rank})
        for rank, row in enumerate(rows[place][0] for place in places)
    ]


def k_centre(vectors: np.ndarray, held: Sequence[int], n: int) -> list[tuple[int, float]]:
    """(index, distance to the nearest centre), farthest first; vectors [n, d], `held` are centres.

    Without centres the first is the vector nearest to the mean.
    """
    picked: list[tuple[int, float]] = []
    if held:
        nearest = _distances(vectors, vectors[list(held)]).min(axis=1)
    else:
        start = int(np.argmin(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)))
        picked.append((start, 0.0))
        nearest = np.linalg.norm(vectors - vectors[start], axis=1)
    nearest[[*held, *(i for i, _ in picked)]] = -1.0  # and stay below any distance
    while len(picked) < n and nearest.max() >= 0:
        far = int(np.argmax(nearest))
        picked.append((far, float(nearest[far])))
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[far], axis=1))
        nearest[far] = -1.0
    return picked


def facility_location(vectors: np.ndarray, held: Sequence[int], n: int) -> list[tuple[int, float]]:
    """(index, gain) of greedy maximisation of sum_i max_{j chosen} cosine(i, j)."""
    similar = vectors @ vectors.T
    covered = similar[:, list(held)].max(axis=1) if held else np.full(len(vectors), -1.0)
    free = np.ones(len(vectors), bool)
    free[list(held)] = False
    picked: list[tuple[int, float]] = []
    while len(picked) < n and free.any():
        gains = np.maximum(similar - covered[:, None], 0.0).sum(axis=0)
        best = int(np.argmax(np.where(free, gains, -1.0)))
        picked.append((best, float(gains[best])))
        covered, free[best] = np.maximum(covered, similar[:, best]), False
    return picked


def without_near_copies(rows: Sequence[tuple[Prompt, Vector]], similarity: float) -> list[Prompt]:
    """The questions that are not more than `similarity` (cosine) like one kept before."""
    kept: list[int] = []
    vectors = np.array([vector.values for _, vector in rows])
    for i in range(len(rows)):
        if not kept or float((vectors[kept] @ vectors[i]).max()) <= similarity:
            kept.append(i)
    return [rows[i][0] for i in kept]


Cover = Callable[[np.ndarray, Sequence[int], int], list[tuple[int, float]]]
COVER: dict[str, Cover] = {"k_centre": k_centre, "facility_location": facility_location}


def _distances(a_nd: np.ndarray, b_md: np.ndarray) -> np.ndarray:
    squares = (a_nd**2).sum(1)[:, None] + (b_md**2).sum(1)[None] - 2 * a_nd @ b_md.T
    return np.sqrt(np.maximum(squares, 0.0))


def _chosen(prompt: Prompt, rank: int, strategy: str, score: float) -> Row:
    """A line of the selection log."""
    values: dict[str, Any] = {"rank": rank, "strategy": strategy, "score": round(score, 5)}
    return Row.make(source_id=prompt.id, values=values)
