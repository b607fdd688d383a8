"""What decides how a run goes on: is a round accepted, which policy is kept, what is asked again.

Pure functions of records that come from the training and validation splits; a run refuses to
decide anything by the test split.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.gauges import CURE, beyond
from selfevo_jax.records import Answer, Prompt, Row, Sample, Verdict

ROUNDING = 1e-9  # 0.8 - 0.1 is a little more than 0.7


def verdict_on_round(answers: Sequence[Answer], tolerance: float, lost_share: float) -> list[Row]:
    """Whether a policy may follow the best one: a Row named after it.

    answers: those of the best policy so far, then the candidate's to the same questions. The
    candidate is refused when its mean score (the share of right answers, where the task knows only
    right and wrong) lies more than `tolerance` below, or when it gets more than `lost_share` of
    what the best had right wrong.
    """
    by_policy: dict[str, dict[str, Answer]] = {}
    for answer in answers:
        by_policy.setdefault(answer.policy, {})[answer.prompt_id] = answer
    (best, before), (candidate, after) = by_policy.items()
    solved = [name for name, answer in before.items() if answer.correct]
    lost = sum(not after[name].correct for name in solved)
    score, best_score = (sum(a.score for a in of.values()) / len(of) for of in (after, before))
    why = ""
    if score < best_score - tolerance - ROUNDING:
        why = f"the mean score fell from {best_score:.3f} to {score:.3f} of {len(after)}"
    elif lost > lost_share * len(solved) + ROUNDING:
        why = f"{lost} of {len(solved)} questions that were solved are no longer"
    values: dict[str, Any] = {
        "policy": candidate,
        "accepted": not why,
        "why": why,
        "n": len(after),
        "score": score,
        "best": best,
        "best_score": best_score,
        "gained": sum(a.correct and not before[name].correct for name, a in after.items()),
        "lost": lost,
    }
    return [Row.make(source_id=candidate, values=values)]


def highest(rows: Sequence[Row]) -> list[Row]:
    """The row with the highest `value`, the first of equals."""
    return [max(rows, key=lambda row: row.values["value"])]


def highest_standing(
    rows: Sequence[Row],
    gauged: Sequence[Row],
    least: Mapping[str, float],
    most: Mapping[str, float],
) -> list[Row]:
    """As `highest`, of the policies that no gauge is beyond its limit of.

    Its `collapsed` says of every other one why it was left out. Raises UserError when all were.
    """
    found = {row.source_id: beyond(row, least, most) for row in gauged}
    collapsed = {name: why for name, why in found.items() if why}
    standing = [row for row in rows if row.source_id not in collapsed]
    if not standing:
        told = ", ".join(f"{name} ({why})" for name, why in collapsed.items())
        raise UserError(f"all candidates have collapsed: {told} (settings gauges.*). {CURE}")
    (best,) = highest(standing)
    if not collapsed:
        return [best]
    return [Row.make(source_id=best.source_id, values=best.values | {"collapsed": collapsed})]


Judged = Sequence[tuple[Sample, Verdict]]


def pass_rate(judged: Judged) -> list[Row]:
    """The share of right answers among a question's samples."""
    rate = sum(verdict.correct for _, verdict in judged) / len(judged)
    return [Row.make(source_id=judged[0][0].prompt_id, values={"rate": rate, "n": len(judged)})]


def of_middling_difficulty(judged: Judged, low: float, high: float) -> list[Sample]:
    """A question's samples where low < share of right answers < high, else nothing."""
    rate = pass_rate(judged)[0].values["rate"]
    return [sample for sample, _ in judged] if low < rate < high else []


def prompt_of_group(row: tuple[list[Sample], Prompt]) -> list[Prompt]:
    """The prompt that a group of samples belongs to."""
    return [row[1]]


def solved(row: Row) -> bool:
    """Whether all samples of a question were right."""
    return row.values["rate"] == 1.0


def itself(prompt: Prompt) -> list[Prompt]:
    """The question as it is."""
    return [prompt]
