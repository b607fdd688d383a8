"""Prompts in text files: named, versioned, with declared fields.

    name: refeval                         head: one `key: value` a line
    version: 1
    fields: instruction, reference, output_a, output_b
    cut: reference, output_a, output_b    which fields may be shortened, and no others
    labels: a, b                          any further key is the reader's own
    === user                              then messages by role, in order,
    ... {instruction} ...
    === verdict                           and named parts that are no messages
    Output (

`{name}` is a place where a declared field goes; any other brace is text, in the file and in what
is put in. A file whose places and declared fields differ is refused, and so are fields that a
caller forgets or invents. What is too long is cut inside the `cut` fields: all of them get the
same cap, so the longest loses first and no other word, the end above all, is ever lost.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.text.chat import ROLES
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import Tokenizer

PLACE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
NEEDED = ("name", "version", "fields")


@dataclass(frozen=True)
class PromptFile:
    """One prompt. `head` has the file's further keys, `hash` is 16 hex digits over its text."""

    name: str
    version: str
    fields: tuple[str, ...]
    cut: tuple[str, ...]
    head: Mapping[str, str]
    messages: tuple[Mapping[str, str], ...]
    parts: Mapping[str, str]
    hash: str

    def part(self, name: str) -> str:
        """A named part. Raises UserError where the file has none."""
        if name not in self.parts:
            raise UserError(f"prompt {self.name}: its file has no part {name!r}; add === {name}")
        return self.parts[name]

    def listed(self, key: str) -> tuple[str, ...]:
        """The values of a head key separated by commas. Raises UserError where it is absent."""
        if key not in self.head:
            raise UserError(f"prompt {self.name}: its head has no {key!r}; add `{key}: ...`")
        return _list(self.head[key])

    def fill(self, fields: Mapping[str, str], cap: int | None = None) -> tuple[dict[str, str], ...]:
        """The messages with exactly the declared fields put in, the `cut` ones up to `cap` letters.

        Raises UserError for a missing or unknown field, or one that is no text.
        """
        self._check(fields)
        shown = {name: text[:cap] if name in self.cut else text for name, text in fields.items()}
        return tuple(
            {
                "role": message["role"],
                "content": PLACE.sub(lambda match: shown[match[1]], message["content"]),
            }
            for message in self.messages
        )

    def cap(
        self,
        tokenizer: Tokenizer,
        id: str,
        variants: Sequence[Mapping[str, str]],
        room: int,
        prefix: str = "",
    ) -> int | None:
        """The most letters of a `cut` field with which every variant has at most `room` tokens.

        None where nothing has to be cut. `prefix` begins the answer and is counted. Raises
        UserError naming `id` when the prompt does not fit without any of its `cut` fields.
        """

        def length(cap: int | None) -> int:
            filled = (self.fill(fields, cap) for fields in variants)
            return max(len(render_prompt(tokenizer, messages, prefix)) for messages in filled)

        if length(None) <= room:
            return None
        if not self.cut or length(0) > room:
            raise UserError(
                f"{id}: without its fields {', '.join(self.cut) or '(none may be cut)'} the prompt "
                f"{self.name} still has {length(0)} tokens and {max(room, 0)} fit; raise max_length"
            )
        low, high = 0, max(len(fields[name]) for fields in variants for name in self.cut)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if length(middle) <= room else (low, middle)
        return low

    def lost(self, fields: Mapping[str, str], cap: int | None) -> dict[str, int]:
        """How many letters each field that was cut has lost at this cap."""
        if cap is None:
            return {}
        return {name: len(fields[name]) - cap for name in self.cut if len(fields[name]) > cap}

    def _check(self, fields: Mapping[str, str]) -> None:
        odd = sorted(set(fields) ^ set(self.fields))
        if odd:
            raise UserError(
                f"prompt {self.name} has the fields {', '.join(self.fields)}; "
                f"missing or unknown: {', '.join(odd)}"
            )
        wrong = [name for name, text in fields.items() if not isinstance(text, str)]
        if wrong:
            raise UserError(f"prompt {self.name}: the field {wrong[0]!r} is not a text")


@cache
def read_prompt(path: Path) -> PromptFile:
    """The prompt in a file. Raises UserError naming the file for everything that is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a prompt: {error}") from error
    return parse_prompt(text, str(path))


def parse_prompt(text: str, where: str) -> PromptFile:
    """The same from a text; `where` is what messages call it."""
    opening, *sections = re.split(r"^=== *(.*?) *$", text, flags=re.MULTILINE)
    head = _head(opening, where)
    names, bodies = sections[::2], [body.strip("\n") for body in sections[1::2]]
    turns = [(name, body) for name, body in zip(names, bodies, strict=True) if name in ROLES]
    parts = {name: body for name, body in zip(names, bodies, strict=True) if name not in ROLES}
    if not turns or len(parts) + len(turns) != len(names):
        raise UserError(f"{where}: it needs a message (=== user), and no part twice")
    further = {key: value for key, value in head.items() if key not in (*NEEDED, "cut")}
    prompt = PromptFile(
        name=head["name"],
        version=head["version"],
        fields=_list(head["fields"]),
        cut=_list(head.get("cut", "")),
        head=further,
        messages=tuple({"role": role, "content": content} for role, content in turns),
        parts=parts,
        hash=hashlib.sha256(text.encode()).hexdigest()[:16],
    )
    _check_places(prompt, where)
    return prompt


def _head(text: str, where: str) -> dict[str, str]:
    head: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        key, colon, value = line.partition(":")
        if not colon or key.strip() in head:
            raise UserError(f"{where}: the head line {line!r} is no `key: value`, or comes twice")
        head[key.strip()] = value.strip()
    missing = [key for key in NEEDED if not head.get(key)]
    if missing:
        raise UserError(f"{where}: the head lacks {', '.join(missing)}")
    return head


def _check_places(prompt: PromptFile, where: str) -> None:
    used = {name for m in prompt.messages for name in PLACE.findall(m["content"])}
    odd = sorted(used ^ set(prompt.fields)) + sorted(set(prompt.cut) - set(prompt.fields))
    if odd or len(set(prompt.fields)) != len(prompt.fields):
        raise UserError(
            f"{where}: the places in the messages and the declared fields differ: "
            f"{', '.join(odd) or 'a field is declared twice'}"
        )


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
