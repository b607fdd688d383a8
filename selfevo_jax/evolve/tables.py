"""The tables that methods end with: who was right how often, and what that gained."""

from collections.abc import Sequence
from typing import Any

from selfevo_jax.evaluate.stats import paired_difference, wilson_interval
from selfevo_jax.records import Answer, Row


def accuracy(answers: Sequence[Answer]) -> list[Row]:
    """A row for every policy: accuracy with its 95 % interval, mean length, gain over the first.

    Answers of one policy stand together; the gain is paired by prompt (`stats.paired_difference`).
    """
    by_policy: dict[str, dict[str, Answer]] = {}
    for answer in answers:
        by_policy.setdefault(answer.policy, {})[answer.prompt_id] = answer
    first = next(iter(by_policy.values()), {})
    return [_policy(name, found, first) for name, found in by_policy.items()]


def _policy(name: str, found: dict[str, Answer], first: dict[str, Answer]) -> Row:
    right, n = sum(answer.correct for answer in found.values()), len(found)
    values: dict[str, Any] = {"policy": name, "n": n, **share("accuracy", right, n)}
    values["parsed"] = sum(answer.parsed is not None for answer in found.values()) / n
    values["tokens"] = sum(answer.tokens for answer in found.values()) / n
    if found is not first:
        values |= gain([(first[key].correct, found[key].correct) for key in found if key in first])
    return Row.make(source_id=name, values=values)


def share(name: str, right: int, n: int) -> dict[str, Any]:
    """A share with its 95 % interval (Wilson)."""
    interval = wilson_interval(right, n)
    return {name: right / n, f"{name}_low": interval.low, f"{name}_high": interval.high}


def gain(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """What (before, after) of the same items gained, with its paired 95 % interval."""
    before, after = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    difference = paired_difference(before, after)
    return {"gain": difference.gain, "gain_low": difference.low, "gain_high": difference.high}
