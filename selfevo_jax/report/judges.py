"""How the judges of a run behaved: failures, ties, flips, and what they like besides quality."""

import re
from collections.abc import Iterator
from typing import Any

from selfevo_jax.judge.aggregate import Rate
from selfevo_jax.judge.health import Known, health
from selfevo_jax.judge.pairwise import Comparison
from selfevo_jax.report.folder import RunFolder

RATES = ("failures", "ties", "flips", "shown_first", "longer")


def judges(folder: RunFolder) -> list[dict[str, Any]]:
    """The conduct of the judge of every pairwise stage: (hits, n) of each of `RATES`.

    `longer` counts the contests whose two texts lie in the records that the stage read.
    """
    return [
        {"round": number, "stage": stage} | _conduct(folder, number, stage)
        for number in folder.rounds()
        for stage in folder.stages(number)
        if _judged(folder, number, stage)
    ]


def _judged(folder: RunFolder, number: int, stage: str) -> bool:
    first = next(folder.rows(number, stage), {})
    return {"ballots", "p_first", "verdict"} <= first.keys()


def _conduct(folder: RunFolder, number: int, stage: str) -> dict[str, Any]:
    found = [Comparison.from_json(row, stage) for row in folder.rows(number, stage)]
    seen = health(found, _lengths(folder, number, stage))
    return {
        "judge": found[0].judge,
        "protocol": found[0].protocol,
        "contests": seen.contests,
        "mass": seen.mass,
        "reasons": dict(seen.reasons),
        **{name: _counts(getattr(seen, name)) for name in RATES},
    }


def _lengths(folder: RunFolder, number: int, stage: str) -> dict[str, Known]:
    """How long the two outputs of a contest are, by the id of the row that was judged.

    Such a row holds both texts (a match), or it is a reply that is set against the reply it is a
    child of (a duel).
    """
    known: dict[str, Known] = {}
    replies: dict[str, tuple[int, str]] = {}
    for row in _read_by(folder, number, stage):
        values = row.get("values")
        if isinstance(values, dict) and {"first", "second"} <= values.keys():
            known[row["id"]] = Known(len(str(values["first"])), len(str(values["second"])))
        elif {"text", "parent_id"} <= row.keys():
            replies[row["id"]] = len(row["text"]), row["parent_id"]
    for name, (length, parent) in replies.items():
        if parent in replies:
            known[name] = Known(length, replies[parent][0])
    return known


def _read_by(folder: RunFolder, number: int, stage: str) -> Iterator[dict[str, Any]]:
    """The records of all stages that a stage read."""
    sealed = folder.document(f"round_{number:02d}/{stage}/stage.json")
    for name in sealed.get("stage", {}).get("inputs", {}):
        if match := re.fullmatch(r"round_(\d+)/(.+)", name):
            yield from folder.rows(int(match[1]), match[2])


def _counts(rate: Rate) -> tuple[int, int]:
    return rate.hits, rate.n
