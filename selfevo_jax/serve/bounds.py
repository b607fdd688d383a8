"""Every field of a request, and what it may hold: one table for both routes.

A body is a dict that came from strangers. Whatever passes `read_body` and `checked` is safe for
the engine; everything else is `Refused` with a status and the name of the field. Fields that are
not in the table are refused: one that is ignored would be a promise not kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from selfevo_jax.sample.protocol import MAX_STOP_TOKENS
from selfevo_jax.text.chat import ROLES

MOST_BYTES = 4 * 2**20  # of a body
MOST_CHOICES = 1024  # prompts x n of one request
COLDEST = 1e-4  # temperatures below are 0: the division by them would overflow


class Refused(Exception):
    """The request gets this HTTP status and message; `field` is the culprit, if one is."""

    def __init__(
        self, message: str, field: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.field, self.status, self.code = field, status, code


Check = Callable[[Any], Any]  # returns the value to use; raises ValueError(what it must be)


def whole(low: int, high: int) -> Check:
    """A whole number in [low, high]; true and 1.0 are none."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def number(low: float, high: float, *, above: bool = False) -> Check:
    """A finite number in [low, high], or ]low, high] when `above`."""

    def check(value: Any) -> float:
        bad = type(value) not in (int, float) or not low <= value <= high
        if bad or not math.isfinite(value) or (above and value == low):
            raise ValueError(f"a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    return check


def flag(value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def text(most: int) -> Check:
    """A string of 1 to `most` characters, all of them proper Unicode."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= most or not _proper(value):
            raise ValueError(f"a text of 1 to {most} characters")
        return value

    return check


def only(*values: Any) -> Check:
    """One of these values: fields whose other meanings this server does not have."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in values):
            raise ValueError(" or ".join(json.dumps(one) for one in values))
        return value

    return check


def stops(value: Any) -> tuple[str, ...]:
    """One text or a list of up to 16."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or len(listed) > 16:
        raise ValueError("a text, or a list of up to 16")
    return tuple(text(256)(one) for one in listed)


def token_ids(value: Any) -> tuple[int, ...]:
    """A short list of ids; whether the vocabulary has them is checked with the model."""
    if not isinstance(value, list) or len(value) > MAX_STOP_TOKENS // 2:
        raise ValueError(f"a list of up to {MAX_STOP_TOKENS // 2} token ids")
    return tuple(whole(0, 2**31 - 1)(one) for one in value)


def prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    if isinstance(value, str):
        value = [value]
    elif isinstance(value, list) and value and type(value[0]) is int:
        value = [value]
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_CHOICES:
        raise ValueError(f"a text, token ids, or a list of 1 to {MOST_CHOICES} of them")
    return tuple(_prompt(one) for one in value)


def messages(value: Any) -> tuple[dict[str, str], ...]:
    """1 to 1024 messages with a known role and a text."""
    if not isinstance(value, list) or not 1 <= len(value) <= 1024:
        raise ValueError("a list of 1 to 1024 messages")
    return tuple(_message(one) for one in value)


def stream_options(value: Any) -> bool:
    """Whether the usage comes with the stream."""
    if not isinstance(value, dict) or not set(value) <= {"include_usage"}:
        raise ValueError("an object with include_usage")
    return flag(value.get("include_usage", False))


COMMON: dict[str, tuple[Check, Any]] = {  # field: (check, value when absent or null)
    "model": (text(1024), None),
    "n": (whole(1, 128), 1),
    "best_of": (whole(1, 128), None),
    "max_tokens": (whole(0, 2**31 - 1), None),
    "temperature": (number(0.0, 100.0), 1.0),
    "top_p": (number(0.0, 1.0, above=True), 1.0),
    "top_k": (whole(0, 2**31 - 1), 0),
    "min_p": (number(0.0, 1.0), 0.0),
    "repetition_penalty": (number(0.0, 100.0, above=True), 1.0),
    "stop": (stops, ()),
    "stop_token_ids": (token_ids, ()),
    "seed": (whole(-(2**63), 2**64 - 1), None),
    "stream": (flag, False),
    "stream_options": (stream_options, False),
    "return_token_ids": (flag, False),
    "user": (text(1024), None),
    "frequency_penalty": (only(0, 0.0), 0),
    "presence_penalty": (only(0, 0.0), 0),
    "logit_bias": (only({}), {}),
}
COMPLETIONS = COMMON | {
    "prompt": (prompts, None),
    "logprobs": (whole(0, 20), None),
    "echo": (flag, False),
    "suffix": (only(""), ""),
}
CHAT = COMMON | {
    "messages": (messages, None),
    "max_completion_tokens": (whole(1, 2**31 - 1), None),
    "logprobs": (flag, False),
    "top_logprobs": (whole(0, 20), 0),
    "continue_final_message": (flag, False),
    "add_generation_prompt": (flag, None),
    "response_format": (only({"type": "text"}), None),
}


def read_body(content: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises `Refused` for anything else, NaN included."""
    try:
        body = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("the body is not valid JSON") from error
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object")
    return body


def checked(body: Mapping[str, Any], table: Mapping[str, tuple[Check, Any]]) -> dict[str, Any]:
    """The value of every field of the table. Raises `Refused` for the first bad field."""
    for name in body:
        if name not in table:
            raise Refused(f"unknown field {_short(name)}", name[:80])
    found = {}
    for name, (check, default) in table.items():
        value = body.get(name)
        try:
            found[name] = default if value is None else check(value)
        except ValueError as error:
            raise Refused(f"{name} {_short(value)} must be {error}", name) from error
    _together(found)
    return found


def _together(found: dict[str, Any]) -> None:
    """What fields must be to one another."""
    what = "prompt" if "prompt" in found else "messages"
    for name in ("model", what):
        if found[name] is None:
            raise Refused(f"{name} is missing", name)
    if found["max_tokens"] == 0 and not found.get("echo"):
        raise Refused("max_tokens 0 is for echo only", "max_tokens")
    if found["best_of"] not in (None, found["n"]):
        raise Refused("best_of must be equal to n", "best_of")
    if found["n"] * len(found.get("prompt", "1")) > MOST_CHOICES:
        raise Refused(f"prompts x n must be at most {MOST_CHOICES}", "n")
    if found.get("top_logprobs") and not found["logprobs"]:
        raise Refused("top_logprobs needs logprobs true", "top_logprobs")
    if what == "messages":
        last, wanted = found["messages"][-1]["role"], found["add_generation_prompt"]
        if found["continue_final_message"] and last != "assistant":
            raise Refused("only an assistant's message can be continued", "continue_final_message")
        if wanted not in (None, not found["continue_final_message"]):
            raise Refused(
                "add_generation_prompt must be the opposite of continue_final_message",
                "add_generation_prompt",
            )


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and _proper(value):
        return value
    if isinstance(value, list) and all(type(i) is int and 0 <= i < 2**31 for i in value):
        return tuple(value)
    raise ValueError("texts, or lists of token ids of the vocabulary")


def _message(value: Any) -> dict[str, str]:
    """Role and content; a content in parts is joined when all of them are texts."""
    if not isinstance(value, dict) or not set(value) <= {"role", "content", "name", "type"}:
        raise ValueError("messages with role and content")
    content = value.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts) or any(
            part.get("type") != "text" for part in content
        ):
            raise ValueError("messages whose content is text")
        content = "".join(parts)
    if not isinstance(content, str) or not _proper(content) or value.get("role") not in ROLES:
        raise ValueError(f"messages with a role of {', '.join(ROLES)} and a text as content")
    return {"role": value["role"], "content": content}


def _proper(value: str) -> bool:
    """Whether the text has no half characters (lone surrogates), which UTF-8 cannot hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    shown = json.dumps(value) if not isinstance(value, int) or abs(value) < 2**64 else "(huge)"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
