"""What people wrote, in place of or beside what a model writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.records import Prompt, Row, Sample


def human_example(row: Mapping[str, Any]) -> Row:
    """A worked example: {input, output, reason} and, where it suits one only, its task."""
    values = {name: _text(row, name) for name in ("input", "output", "reason")}
    return Row.make(source_id=values["input"], values={"task": row.get("task", "")} | values)


def human_critique(row: Mapping[str, Any]) -> Row:
    """A person's critique: {question, feedback}."""
    values = {name: _text(row, name) for name in ("question", "feedback")}
    return Row.make(source_id=values["question"], values=values)


def with_people(row: tuple[Sample, Prompt], people: Sequence[Row], share: float) -> list[Sample]:
    """The vote's critique, or in a `share` of the questions that people criticised, theirs.

    Which questions is decided by their ids, so that the same ones are a person's in every round.
    """
    critique, prompt = row
    drawn = int(prompt.id, 16) / 16 ** len(prompt.id) < share
    asked = prompt.messages[-1]["content"].strip()
    for person in people if drawn else ():
        if person.values["question"].strip() == asked:
            return [_by_a_person(critique, person.values["feedback"])]
    return [critique]


def _by_a_person(critique: Sample, text: str) -> Sample:
    return Sample.make(
        prompt_id=critique.prompt_id, parent_id=critique.parent_id, text=text, tokens=(), logps=(),
        finish="stop", seed=0, policy="human",
    )  # fmt: skip


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str):
        raise UserError(f"a row of a person's file has no text {name!r}: {str(dict(row))[:80]}")
    return row[name]
