"""The tables that methods end with: who was right how often, and what that gained."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.evaluate.stats import paired_difference, wilson_interval
from selfevo_jax.records import Answer, Row

_LINE = re.compile(r"(\w+)-(\d+)\.")  # of the study: strategy and m, as in random-2.round_02


def accuracy(answers: Sequence[Answer]) -> list[Row]:
    """A row for every policy: accuracy with its 95 % interval, mean length, gain over the first.

    Answers of one policy stand together; the gain is paired by prompt (`stats.paired_difference`).
    Where a task gives marks between right and wrong, such as ROUGE-L, the mean score and its gain
    stand beside.
    """
    by_policy = answers_by_policy(answers)
    first = next(iter(by_policy.values()), {})
    marked = any(answer.score != answer.correct for answer in answers)
    return [_policy(name, found, first, marked) for name, found in by_policy.items()]


def study(answers: Sequence[Answer]) -> list[Row]:
    """The table of `accuracy`, with strategy, m, and the gain over chance at the same m."""
    by_policy = answers_by_policy(answers)
    rows = []
    for row in accuracy(answers):
        named = _LINE.match(row.values["policy"])
        if named is None:
            rows.append(row)
            continue
        strategy, m = named[1], int(named[2])
        values = {"strategy": strategy, "m": m, **row.values}
        chance = next((p for p in by_policy if p.startswith(f"random-{m}.")), None)
        if chance and strategy != "random":
            mine, theirs = by_policy[row.values["policy"]], by_policy[chance]
            over = gain([(theirs[key].correct, answer.correct) for key, answer in mine.items()])
            values |= {f"over_random{name.removeprefix('gain')}": v for name, v in over.items()}
        rows.append(Row.make(source_id=row.source_id, values=values))
    return rows


def answers_by_policy(answers: Sequence[Answer]) -> dict[str, dict[str, Answer]]:
    """Policy -> prompt id -> answer."""
    by_policy: dict[str, dict[str, Answer]] = {}
    for answer in answers:
        by_policy.setdefault(answer.policy, {})[answer.prompt_id] = answer
    return by_policy


def _policy(
    name: str, found: Mapping[str, Answer], first: Mapping[str, Answer], marked: bool
) -> Row:
    right, n = sum(answer.correct for answer in found.values()), len(found)
    values: dict[str, Any] = {"policy": name, "n": n, **share("accuracy", right, n)}
    if marked:
        values["score"] = sum(answer.score for answer in found.values()) / n
    values["parsed"] = sum(answer.parsed is not None for answer in found.values()) / n
    values["tokens"] = sum(answer.tokens for answer in found.values()) / n
    both = [(first[key], found[key]) for key in found if key in first]
    if found is not first:
        values |= gain([(before.correct, after.correct) for before, after in both])
        if marked:
            more = gain([(before.score, after.score) for before, after in both])
            values |= {f"score_{key}": value for key, value in more.items()}
    return Row.make(source_id=name, values=values)


def share(name: str, right: int, n: int) -> dict[str, Any]:
    """A share with its 95 % interval (Wilson)."""
    interval = wilson_interval(right, n)
    return {name: right / n, f"{name}_low": interval.low, f"{name}_high": interval.high}


def gain(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What (before, after) of the same items gained, with its paired 95 % interval."""
    before, after = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    difference = paired_difference(before, after)
    return {"gain": difference.gain, "gain_low": difference.low, "gain_high": difference.high}
