"""Completions to imitate: what a method turns into training examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.records import Example, Prompt, Sample


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
