"""What became of questions that are tried in several turns: beliefs, outcomes, the table.

No checker says at test time which answers are right; a bound with one is optional.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.evolve.tables import gain, share
from selfevo_jax.records import Row, Sample, Verdict

BELIEF = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
LACKING = {  # what a variant that was not trained had too little of
    "one_stage": "no reflection helped; raise prompts.n or pool.per_answer",
    "two_stage": "no reflection helped; raise prompts.n or pool.per_answer",
    "dpo": "of no answer one reflection helped and another did not; raise pool.per_answer",
    "dpo_pref": "of no answer two reflections helped, or the judge preferred none",
    "qa": "no question has a gold answer",
}


def belief(row: tuple[Sample, Sample]) -> list[Verdict]:
    """(what was said of an answer, the answer): whether it is believed to be right."""
    said, answer = row
    word = BELIEF.match(said.text)
    parsed = word and word[1].lower()
    yes = parsed == "yes"
    return [Verdict.make(sample_id=answer.id, score=float(yes), correct=yes, parsed=parsed)]


def outcome(row: tuple[Any, ...], variant: str, turn: int) -> list[Row]:
    """Of one question: right at turn 1 (`first`), at this turn (`later`), at any so far (`ever`).

    `verified`: right where one stops at the first answer that is believed. row: this turn's answer
    and its verdict; answer, verdict and belief of each turn before it, the last one first, and what
    was said between them; the prompt.
    """
    marks = [part for part in row if isinstance(part, Verdict)]
    right = [mark.correct for mark in (marks[0], *marks[1::2])][::-1]
    beliefs = marks[2::2][::-1]
    stopped = (was for was, belief in zip(right, beliefs, strict=False) if belief.correct)
    values = {"variant": variant, "turn": turn, "first": right[0], "later": right[-1]}
    values |= {"ever": any(right), "verified": next(stopped, right[-1])}
    values["unread"] = sum(belief.parsed is None for belief in beliefs)
    return [Row.make(source_id=row[-1].id, values=values)]


def turns_table(rows: Sequence[Row], oracle: bool, variants: Sequence[str] = ()) -> list[Row]:
    """Accuracy at turn 1 and later, without and with self-verification, and the flips. `unread`
    verifications said neither yes nor no, and were taken for no.

    `oracle` adds what a checker at test time would give, who lets right answers stand: a bound that
    cannot fall from turn to turn, never the result. `variants` without rows were not trained.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row.values["variant"], row.values["turn"]), []).append(row.values)
    tested = {variant for variant, _ in groups}
    untrained = [{"variant": v, "not_trained": LACKING[v]} for v in variants if v not in tested]
    found = [_turns(*named, values, oracle) for named, values in groups.items()]
    return [
        Row.make(source_id=f"{values['variant']}/{values.get('turn', 0)}", values=values)
        for values in (*found, *untrained)
    ]


def _turns(
    variant: str, turn: int, found: Sequence[Mapping[str, Any]], oracle: bool
) -> dict[str, Any]:
    n = len(found)
    values = {
        "variant": variant,
        "turn": turn,
        "n": n,
        **share("acc_t1", sum(v["first"] for v in found), n),
        **share("acc", sum(v["later"] for v in found), n),
        **_gain("gain", found, "later"),
        **share("acc_self_verified", sum(v["verified"] for v in found), n),
        **_gain("gain_self_verified", found, "verified"),
        "unread": sum(v["unread"] for v in found),
        "right_to_wrong": sum(v["first"] and not v["later"] for v in found),
        "wrong_to_right": sum(v["later"] and not v["first"] for v in found),
    }
    if oracle:
        values |= share("acc_oracle", sum(v["ever"] for v in found), n)
        values |= _gain("gain_oracle", found, "ever")
    return values


def _gain(name: str, found: Sequence[Mapping[str, Any]], after: str) -> dict[str, float]:
    """What `after` gained over turn 1, with its paired interval."""
    gained = gain([(v["first"], v[after]) for v in found])
    return {key.replace("gain", name, 1): value for key, value in gained.items()}
