"""How the judges of a run behaved, in figures and contest by contest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from selfevo_jax.judge.aggregate import Rate
from selfevo_jax.judge.health import Known, health
from selfevo_jax.judge.pairwise import Comparison
from selfevo_jax.report.folder import Place, RunFolder
from selfevo_jax.report.texts import conversation, shorten, within_budget

RATES = ("failures", "ties", "flips", "shown_first", "longer")


@dataclass(frozen=True)
class Texts:
    """What was compared, as far as the run keeps it beside the contest."""

    first: str
    second: str
    question: str = ""
    reference: str = ""


def judges(folder: RunFolder) -> list[dict[str, Any]]:
    """The conduct of the judge of every pairwise stage: (hits, n) of each of `RATES`.

    `longer` counts the contests whose two texts lie in the records that the stage read.
    """
    return [
        {"round": place[0], "stage": place[1]} | _conduct(folder, place)
        for place in folder.places()
        if _judged(folder, place)
    ]


def contests(folder: RunFolder) -> dict[str, Any]:
    """{"rows", "total"} of the contests of all judges, with both texts where the run keeps them.

    `flip`: the two orders name different outputs. A ballot is (reference, order, probability that
    the first output is better, probability on the labels, what the judge wrote, why it failed).
    """
    rows, total = within_budget(_contests(folder), _size)
    return {"rows": rows, "total": total}


def _contests(folder: RunFolder) -> Iterator[dict[str, Any]]:
    for place in folder.places():
        if _judged(folder, place):
            texts = _texts(folder, place)
            for row in folder.rows(*place):
                found = Comparison.from_json(row, place[1])
                yield {"round": place[0], "stage": place[1]} | _contest(found, texts)


def _contest(found: Comparison, texts: Mapping[str, Texts]) -> dict[str, Any]:
    shown = texts.get(found.item_id)
    fields = ("reference", "order", "p", "mass", "reply", "failure")
    return {
        "id": found.item_id,
        "judge": found.judge,
        "verdict": found.verdict,
        "flip": health([found]).flips.hits > 0,
        "failure": found.failure,
        "p": found.p_first,
        "ballots": [
            [shorten(b[f]) if f == "reply" else b[f] for f in fields] for b in found.ballots
        ],
        "changed": [*(f"{name} cut" for name in found.cut), *found.neutralised],
        "texts": shown
        and [shorten(t) for t in (shown.question, shown.reference, shown.first, shown.second)],
    }


def _size(row: Mapping[str, Any]) -> int:
    return sum(map(len, row["texts"] or ())) + sum(len(ballot[4]) for ballot in row["ballots"])


def _judged(folder: RunFolder, place: Place) -> bool:
    first = next(folder.rows(*place), {})
    return {"ballots", "p_first", "verdict"} <= first.keys()


def _conduct(folder: RunFolder, place: Place) -> dict[str, Any]:
    found = [Comparison.from_json(row, place[1]) for row in folder.rows(*place)]
    texts = _texts(folder, place).items()
    seen = health(found, {name: Known(len(t.first), len(t.second)) for name, t in texts})
    return {
        "judge": found[0].judge,
        "protocol": found[0].protocol,
        "contests": seen.contests,
        "mass": seen.mass,
        "reasons": dict(seen.reasons),
        **{name: _counts(getattr(seen, name)) for name in RATES},
    }


def _texts(folder: RunFolder, place: Place) -> dict[str, Texts]:
    """The texts of a stage's contests, by the id of the row that was judged.

    Such a row holds both texts (a match), or it is a reply that is set against the reply it is a
    child of (a duel).
    """
    known: dict[str, Texts] = {}
    replies: dict[str, Mapping[str, Any]] = {}
    prompts: dict[str, Mapping[str, Any]] = {}
    for row in (row for read in folder.read_by(place) for row in folder.rows(*read)):
        values = row.get("values")
        if isinstance(values, dict) and {"first", "second"} <= values.keys():
            told = (str(values.get(n, "")) for n in ("first", "second", "instruction", "reference"))
            known[row["id"]] = Texts(*told)
        elif {"text", "parent_id"} <= row.keys():
            replies[row["id"]] = row
        elif "messages" in row:
            prompts[row["id"]] = row
    for name, reply in replies.items():
        if reply["parent_id"] in replies:
            asked = prompts.get(reply.get("prompt_id", ""), {})
            known[name] = Texts(
                reply["text"],
                replies[reply["parent_id"]]["text"],
                conversation(asked["messages"]) if asked else "",
                str(asked.get("answer") or ""),
            )
    return known


def _counts(rate: Rate) -> tuple[int, int]:
    return rate.hits, rate.n
