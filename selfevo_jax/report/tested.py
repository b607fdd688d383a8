"""Which policies a run tested, and how each answered the held-out questions.

A stage tests when it looks at held-out questions and its records say who was right: Answers, or
ReflectEvo's outcomes of a question, which become answers by the replies and verdicts that they
were made from. What a stage is called plays no part in it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from selfevo_jax.report.folder import Place, RunFolder, line_of

Row = Mapping[str, Any]

ANSWER = ("task", "prompt_id", "policy", "correct")
OUTCOME = ("variant", "turn", "first", "later")  # in the values of a row: who was right when


@dataclass(frozen=True)
class Test:
    """What a stage found out about one policy: task to prompt id to answer, without the texts.

    `policy` is its name in run.json, `title` what a reader is told: of ReflectEvo variant and turn.
    """

    place: Place
    policy: str
    title: str
    answers: Mapping[str, Mapping[str, Row]]

    @property
    def line(self) -> str:
        """The branch of its stage, "" for the run's main line."""
        return line_of(self.place[1])


def tests(folder: RunFolder) -> list[Test]:
    """Every test of the run, in the order of the plan: the first is that of the untrained."""
    return [
        test
        for place in folder.places()
        if not folder.decides(place)
        for test in _tests_of(place, answers(folder, place))
    ]


def _tests_of(place: Place, rows: Iterator[Row]) -> Iterator[Test]:
    found: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for row in rows:
        slim = {key: row.get(key) for key in ("score", "correct", "parsed", "tokens")}
        by_task = found.setdefault((row["policy"], row.get("title", row["policy"])), {})
        by_task.setdefault(row["task"], {})[row["prompt_id"]] = slim
    for (policy, title), by_task in found.items():
        yield Test(place, policy, title, by_task)


def answers(folder: RunFolder, place: Place) -> Iterator[Row]:
    """The Answers of a stage, those that its outcomes tell of, or nothing.

    Those of outcomes have a `title` besides. Raises UserError for a damaged file.
    """
    first = next(folder.rows(*place), {})
    if {"prompt_id", "correct"} <= first.keys():
        yield from folder.rows(*place, needs=ANSWER)
    elif is_outcome(first):
        yield from _from_outcomes(folder, place)


def is_outcome(row: Row) -> bool:
    """Whether a row says how a question went at a later turn."""
    return isinstance(row.get("values"), dict) and row["values"].keys() >= set(OUTCOME)


def _from_outcomes(folder: RunFolder, place: Place) -> Iterator[Row]:
    prompts, replies, verdicts = _behind(folder, place)
    task = str(folder.document("run.json").get("task", ""))
    for row in folder.rows(*place, needs=("values", "source_id")):
        prompt, reply = prompts.get(row["source_id"], {}), replies.get(row["source_id"], {})
        verdict, values = verdicts.get(reply.get("id"), {}), row["values"]
        yield {
            "task": prompt.get("task", task),
            "prompt_id": row["source_id"],
            "policy": reply.get("policy", values["variant"]),
            "title": f"{values['variant']}, turn {values['turn']}",
            "text": reply.get("text", ""),
            "parsed": verdict.get("parsed"),
            "gold": prompt.get("answer"),
            "score": verdict.get("score", float(values["later"])),
            "correct": values["later"],
            "tokens": len(reply.get("tokens", ())),
        }


def _behind(folder: RunFolder, place: Place) -> tuple[dict[str, Row], dict[str, Row], dict]:
    """What outcomes were made from: prompts by id, last replies by prompt, verdicts by reply.

    The last reply to a question is the one that no other began from.
    """
    prompts: dict[str, Row] = {}
    samples: list[Row] = []
    verdicts: dict[str, Row] = {}
    for row in (row for read in folder.read_by(place) for row in folder.rows(*read)):
        if "messages" in row:
            prompts[row["id"]] = row
        elif "sample_id" in row:
            verdicts[row["sample_id"]] = row
        elif "parent_id" in row:
            samples.append(row)
    begun_from = {sample["parent_id"] for sample in samples}
    last = {s["prompt_id"]: s for s in samples if s["id"] not in begun_from}
    return prompts, last, verdicts
