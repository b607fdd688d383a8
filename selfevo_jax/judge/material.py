"""Text under judgement, made unable to pass for anything but text under judgement.

What a candidate writes stands between tags in the judge's prompt. Here its invisible characters go
(zero-width, bidi and other format characters, which hide words from people or split a tag's name),
and what reads as one of those tags, or as a control token of a common chat format, gets its first
bracket replaced by one that belongs to no tag. Local engines never take text for control tokens
(text/guard.py); servers may, so this is done for all. Everything else stays as it was written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cache

KEPT = "\n\t\r"
LESS = "<\uff1c\ufe64\u2039"  # what models and people read as <
CONTROL = r"<(?=[|｜])|(?<=[|｜])>|<(?=/?s>|(?:start|end)_of_turn>|<SYS>>|</SYS>>)|\[(?=/?INST\])"


def neutral(text: str, tags: tuple[str, ...]) -> str:
    """`text` without invisible characters and with no tag of these names, nor a control token."""
    visible = "".join(
        char for char in text if char in KEPT or unicodedata.category(char) not in HIDDEN
    )
    return _brackets(tags).sub(lambda match: "(" if match[0] != ">" else ")", visible)


HIDDEN = ("Cf", "Cc", "Cs", "Co", "Cn")


def neutral_fields(fields: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """All fields of a prompt, whose tags are their names; and the names of those that changed."""
    tags = tuple(fields)
    safe = {name: neutral(text, tags) for name, text in fields.items()}
    return safe, [name for name in fields if safe[name] != fields[name]]


@cache
def _brackets(tags: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(tag).replace("_", r"[\s_\-]*") for tag in tags)
    opening = rf"[{LESS}](?=\s*[/\\]?\s*(?:{names})\b)"
    return re.compile(f"{opening}|{CONTROL}", re.IGNORECASE)
