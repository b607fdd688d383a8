"""Completions to imitate: what a method turns into training examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.records import DataRow, Example, Prompt, Sample


def lesson(
    prompt: Prompt, source: Any, messages: Sequence[Mapping[str, str]], completion: str
) -> Example:
    """`completion`, made from the record `source`, as the reply to `messages`."""
    return Example.make(
        prompt_id=prompt.id,
        source_id=source.id,
        prompt=tuple(messages),
        completion=completion.strip(),
    )


def gold_lesson(prompt: Prompt) -> list[Example]:
    """The question and its gold answer; nothing where there is none."""
    return [lesson(prompt, prompt, prompt.messages, prompt.answer)] if prompt.answer else []


def reply_lesson(row: tuple[Any, ...]) -> list[Example]:
    """(reply, ..., prompt): the question as it was asked, and the reply."""
    reply, prompt = row[0], row[-1]
    assert isinstance(reply, Sample) and isinstance(prompt, Prompt)
    return [lesson(prompt, reply, prompt.messages, reply.text)]


def data_row(row: Mapping[str, Any], turns: str, pairs: bool) -> DataRow:
    """A row as a record, for a loss of `pairs` or of one completion.

    Raises: UserError for a prompt alone, which teaches nothing, and for a pair where the loss
    would learn its rejected side too.
    """
    messages, completions = tuple(row["messages"]), tuple(row["completions"])
    if len(completions) > 1 and not pairs:
        raise UserError(
            f"record {row['id']}: it is a pair (chosen, rejected), and the loss learns all it is "
            "given; take a loss of pairs, as --config.objective.loss=dpo"
        )
    if turns == "all" and len(completions) == 1 and "label" not in row:
        messages, completions = (*messages, {"role": "assistant", "content": completions[0]}), ()
    if not completions and messages[-1]["role"] != "assistant":
        raise UserError(f"record {row['id']}: it is a prompt alone, there is nothing to learn")
    return DataRow.make(
        source_id=row["id"], messages=messages, completions=completions, label=row.get("label")
    )
