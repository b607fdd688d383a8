"""How much text a page holds, and how the texts of a run are shown in it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.report.folder import RunFolder

MAX_ROWS = 100_000  # kept in each table of the page
MAX_CHARACTERS = 40_000_000  # of text in each table
MAX_TEXT = 8_000  # characters of one text; the rest is named


def shorten(text: str) -> str:
    """The text, or its first `MAX_TEXT` characters and how many are left out."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} [... {len(text) - MAX_TEXT} characters are left out of this page]"


def within_budget(rows: Iterable[Any], size: Callable[[Any], int]) -> tuple[list[Any], int]:
    """The first rows, up to `MAX_ROWS` of them and `MAX_CHARACTERS` of text; how many there are."""
    kept: list[Any] = []
    total, room = 0, MAX_CHARACTERS
    for row in rows:
        total += 1
        room -= 200 + size(row)
        if len(kept) < MAX_ROWS and room >= 0:
            kept.append(row)
    return kept, total


def conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as one text; roles are named where there is more than the user's."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def questions(folder: RunFolder, config: Mapping[str, Any], wanted: set[str]) -> dict[str, str]:
    """The text of each wanted prompt: from the records of the run, else made again by its task.

    One that is neither stored nor can be made again is named by its id.
    """
    found = {}
    for prompt_id, messages in _stored_prompts(folder):
        if prompt_id in wanted:
            found[prompt_id] = conversation(messages)
    if wanted - found.keys():
        found |= _made_again(config, wanted)
    return {name: shorten(found.get(name, f"(question {name} is not stored)")) for name in wanted}


def _stored_prompts(folder: RunFolder) -> Iterator[tuple[str, Sequence[Mapping[str, str]]]]:
    for place in folder.places():
        for row in folder.rows(*place):
            if "messages" not in row:
                break  # the records of a stage are of one kind
            yield row["id"], row["messages"]


def _made_again(config: Mapping[str, Any], wanted: set[str]) -> dict[str, str]:
    """Held-out prompts are a function of the task and its seed; {} where its data is not here."""
    task, number = config.get("task", {}), config.get("evaluate", {}).get("n")
    try:
        made = get_task(task.get("name", ""), **task.get("args", {}))
        prompts = list(made.prompts("test", number, config.get("seed", 0)))
    except UserError:
        return {}
    return {p.id: conversation(p.messages) for p in prompts if p.id in wanted}
