"""Rendered examples with the loss mask coloured: what the model reads dim, what it learns green.

Text from data files is printed to a terminal here, so everything in it that could move the cursor,
change colours or reorder the line is shown as an escape instead.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfevo_jax.text.datasets import read_examples
from selfevo_jax.text.render import (
    TokenExample,
    TokenSpan,
    render_conversation,
    render_example,
    render_prompt,
)
from selfevo_jax.text.terminal import escape_controls
from selfevo_jax.text.tokenizer import Tokenizer

NO_LIMIT = 1 << 30
OPEN, CLOSE, BETWEEN = "\u27e6", "\u27e7", "\u00b7"


def show(
    path: str | Path,
    tokenizer: Tokenizer,
    limit: int,
    console: Console,
    separators: bool = False,
    max_length: int = NO_LIMIT,
) -> int:
    """Print the first `limit` examples of a data file as the model would get them.

    On a terminal the prompt is dim and loss tokens are green; elsewhere loss tokens stand between
    ⟦ and ⟧. separators: a dot between tokens. Returns how many were shown. Raises UserError for
    bad rows, naming file:line or the record.
    """
    shown = 0
    for example in read_examples(path):
        if shown == limit:
            break
        _show_one(console, tokenizer, example, separators, max_length)
        shown += 1
    return shown


def _show_one(
    console: Console, tokenizer: Tokenizer, row: dict, separators: bool, max_length: int
) -> None:
    title = escape_controls(f"{row['id']}").replace("\n", "\\n")
    if row["messages"][-1]["role"] == "assistant":  # a text to learn whole
        example = render_conversation(tokenizer, row["id"], row["messages"], max_length)
    elif not row["completions"]:
        ids = render_prompt(tokenizer, row["messages"])
        console.rule(Text(f"{title}  {len(ids)} tokens, prompt only"), align="left")
        _print(console, _styled(tokenizer, ids, [False] * len(ids), console, separators))
        return
    else:
        example = render_example(
            tokenizer, row["id"], row["messages"], row["completions"], max_length
        )
    for index, completion in enumerate(example.completions):
        learned = int(completion.loss.sum())
        count = len(example.prompt.tokens) + len(completion.tokens)
        name = f" completion {index + 1}" if len(example.completions) > 1 else ""
        name += {True: " desirable", False: " not desirable", None: ""}[row.get("label")]
        console.rule(Text(f"{title}{name}  {count} tokens, {learned} learned"), align="left")
        _print(console, styled_example(tokenizer, example, completion, console, separators))


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)


def styled_example(
    tokenizer: Tokenizer,
    example: TokenExample,
    completion: TokenSpan,
    console: Console,
    separators: bool = False,
) -> Text:
    """Prompt and one completion as one styled text."""
    ids = [*example.prompt.tokens.tolist(), *completion.tokens.tolist()]
    loss = [*example.prompt.loss.tolist(), *completion.loss.tolist()]
    return _styled(tokenizer, ids, loss, console, separators)


def _styled(
    tokenizer: Tokenizer, ids: list[int], loss: list[bool], console: Console, separators: bool
) -> Text:
    plain = not (console.is_terminal and console.color_system)
    text = Text()
    start = 0
    while start < len(ids):
        stop = start + 1
        while stop < len(ids) and loss[stop] == loss[start]:
            stop += 1
        part = _printed(tokenizer, ids[start:stop], separators)
        if plain:
            text.append(f"{OPEN}{part}{CLOSE}" if loss[start] else part)
        else:
            text.append(part, style="green" if loss[start] else "dim")
        start = stop
    return text


def _printed(tokenizer: Tokenizer, ids: list[int], separators: bool) -> str:
    if not separators:
        return escape_controls(tokenizer.decode(ids, skip_special=False))
    parts = [tokenizer.decode([i], skip_special=False) for i in ids]
    return BETWEEN.join(escape_controls(part) for part in parts)
