"""Gauges of collapse: does a policy still say many things, at length, and near where it began?

Taken from replies that the policy draws at temperature 1 to the same validation questions in every
round, so that they compare across rounds and methods; and from the last steps of its training.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.records import Row, Sample

LAST = 0.1  # share of a training's steps over which its gaps are averaged
DIGITS = 5
CURE = "Lower learn.lr or raise objective.beta, or loosen the limit and run again"
Scored = tuple[Sample, Row, Row]  # a reply, its log-prob by its policy, by the model of round 0


def gauge_row(rows: Sequence[Scored], steps: Sequence[Mapping[str, Any]], policy: str) -> list[Row]:
    """All gauges of a policy.

    entropy     nats by token, minus the mean log-probability of the drawn tokens
    kl          nats by token to the model of round 0, the mean log-ratio of the drawn replies
    distinct_2  different pairs of words next to each other, of all (Li et al., 2016,
                arXiv:1510.03055)
    repeated_4  runs of four words that stand earlier in the same reply, of all
    identical   replies that say the same as another one to the same question, of all
    tokens      mean length
    reward_gap, logp_gap  chosen less rejected at the end of training on pairs: beta times the
                log-ratio to the reference, and the log-probability itself
    """
    samples = [sample for sample, _, _ in rows]
    words = [sample.text.split() for sample in samples]
    drawn = [logp for sample in samples for logp in sample.logps]
    read = sum(own.values["tokens"] for _, own, _ in rows)
    apart = sum(own.values["logp"] - base.values["logp"] for _, own, base in rows)
    values = {
        "entropy": -sum(drawn) / max(len(drawn), 1),
        "kl": apart / max(read, 1),
        "distinct_2": distinct(words, 2),
        "repeated_4": repeated(words, 4),
        "identical": identical(samples),
        "tokens": sum(len(sample.tokens) for sample in samples) / len(samples),
        **_gaps(steps),
    }
    rounded = {name: round(value, DIGITS) for name, value in values.items()}
    return [Row.make(source_id=policy, values={"policy": policy, "n": len(samples), **rounded})]


def distinct(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams of all n-grams of the texts together; 1 where there are none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def repeated(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """The share of n-grams that stand earlier in the same text; 0 where there are none."""
    grams = [_grams(text, n) for text in texts]
    total = sum(map(len, grams))
    return sum(len(g) - len(set(g)) for g in grams) / total if total else 0.0


def _grams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return list(zip(*(text[start:] for start in range(n)), strict=False))


def identical(samples: Sequence[Sample]) -> float:
    """The share of replies whose text another reply to the same question has as well."""
    same = 0
    for _, group in groupby(samples, key=lambda sample: sample.prompt_id):
        texts = Counter(sample.text.strip() for sample in group)
        same += sum(count for count in texts.values() if count > 1)
    return same / len(samples)


def _gaps(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    last = steps[-max(1, int(LAST * len(steps))) :]
    if not last or "margin" not in last[0]:
        return {}
    logps = [step["logps_chosen"] - step["logps_rejected"] for step in last]
    return {
        "reward_gap": sum(step["margin"] for step in last) / len(last),
        "logp_gap": sum(logps) / len(last),
    }


def beyond(row: Row, least: Mapping[str, float], most: Mapping[str, float]) -> str:
    """Every gauge of a policy that is beyond its limit, in words; nothing where none is."""
    values = row.values
    return "; ".join(
        f"{name} is {values[name]:g}, {word} {setting}.{name}={limit:g}"
        for setting, word, limits in (("least", "below", least), ("most", "above", most))
        for name, limit in limits.items()
        if name in values and (values[name] < limit if setting == "least" else values[name] > limit)
    )


def refuse_collapse(row: Row, least: Mapping[str, float], most: Mapping[str, float]) -> None:
    """Raises a UserError that names every gauge beyond its limit."""
    if why := beyond(row, least, most):
        raise UserError(f"{row.values['policy']} has collapsed: {why} (settings gauges.*). {CURE}")
