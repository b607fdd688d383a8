"""JSON-lines data in the field's three shapes, read to one: {"id", "messages", "completions"}.

    TRL      {"prompt", "completion"} | {"prompt", "chosen", "rejected"} | {"chosen", "rejected"}
             | {"prompt", "completion", "label"} | {"prompt"} | {"messages"} | {"text"};
             texts (standard) or messages (conversational)
    Alpaca   {"instruction", "input", "output"} with optional "system" and "history"
    ShareGPT {"conversations": [{"from": "human", "value": ...}, ...]} with optional "system"

`completions` is [answer] for SFT, [chosen, rejected] for preferences, [] for prompts alone; a
`label` (true: desirable) is kept beside [answer], for KTO. A
"text" row is one assistant message and no completion: all of it is learned. Errors name file:line.
Formats: TRL docs/source/dataset_formats.md; LLaMA-Factory data/README.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.text.chat import check_messages

Row = dict[str, Any]

# How each format is known, by the fields that make it. The order is that of the reader's message.
FORMATS: dict[str, frozenset[str]] = {
    "preference": frozenset({"prompt", "chosen", "rejected"}),
    "prompt-completion": frozenset({"prompt", "completion"}),
    "unpaired-preference": frozenset({"prompt", "completion", "label"}),
    "prompt-only": frozenset({"prompt"}),
    "implicit-preference": frozenset({"chosen", "rejected"}),
    "language-modeling": frozenset({"messages"}),
    "text": frozenset({"text"}),
    "alpaca": frozenset({"instruction", "output"}),
    "sharegpt": frozenset({"conversations"}),
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_SIGNAL = frozenset().union(*FORMATS.values())
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip


def read_jsonl(path: str | Path, required: Mapping[str, type] | None = None) -> Iterator[Row]:
    """The objects of a JSON-lines file, one at a time; UserError names file:line.

    A byte-order mark and blank lines at the end are allowed. `required` maps field -> type.
    """
    for _, row in read_numbered(path, required):
        yield row


def read_numbered(
    path: str | Path, required: Mapping[str, type] | None = None
) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object). As `read_jsonl`."""
    path = Path(path)
    found, blank = False, 0
    for number, line in _lines(path):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise UserError(f"{path}:{blank}: an empty line between rows; remove it")
        row = _parse(line, f"{path}:{number}")
        _check_fields(row, required or {}, f"{path}:{number}")
        found = True
        yield number, row
    if not found:
        raise UserError(f"{path}: the file has no rows; give at least one JSON object")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    yield number, raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; "
                        "save the file as UTF-8"
                    ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(line: str, place: str) -> Row:
    try:
        row = json.loads(line.rstrip("\r\n"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON that can be read: {error}") from error
    if "\\ud" in line.lower() and _SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        raise UserError(f"{place}: half a surrogate pair (\\ud800 to \\udfff) is no character")
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise UserError(f"{place}: a {kind} where an object must be; write one {{...}} per line")
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_fields(row: Row, required: Mapping[str, type], place: str) -> None:
    for name, kind in required.items():
        if name not in row:
            has = ", ".join(row) or "nothing"
            raise UserError(f"{place}: the field {name!r} is missing; the row has: {has}")
        value = row[name]
        # bool is an int to Python, and never what a number field means.
        kinds = (int, float) if kind is float else kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise UserError(
                f"{place}: the field {name!r} is a {type(value).__name__}, "
                f"it must be a {kind.__name__}"
            )


def detect_format(rows: Iterable[Row]) -> str:
    """The key of FORMATS that all these rows have, by their fields.

    Raises UserError when none or more than one fits, or when rows differ.
    """
    signals = {_signal(row) for row in rows}
    if not signals:
        raise UserError("there are no rows to detect a format from")
    names = {_format_of(signal) for signal in signals}
    if len(names) > 1:
        raise UserError(
            f"the rows are of different formats ({', '.join(sorted(names))}); split the file"
        )
    return names.pop()


def _signal(row: Row) -> frozenset[str]:
    """The row's fields that tell formats apart; other data has labels of other kinds."""
    fields = frozenset(row) & _SIGNAL
    return fields if fields == FORMATS["unpaired-preference"] else fields - {"label"}


def format_at(row: Row, place: str) -> str:
    """`detect_format` of one row. Raises UserError naming the place."""
    try:
        return detect_format([row])
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _format_of(signal: frozenset[str]) -> str:
    exact = [name for name, fields in FORMATS.items() if fields == signal]
    if exact:
        return exact[0]
    fits = [name for name, fields in FORMATS.items() if fields <= signal]
    # A format whose fields are all part of a larger one that fits says nothing more.
    fits = [n for n in fits if not any(FORMATS[n] < FORMATS[other] for other in fits)]
    shapes = "; ".join(f"{name}: {', '.join(sorted(FORMATS[name]))}" for name in fits or FORMATS)
    have = ", ".join(sorted(signal)) or "none of the known fields"
    if not fits:
        raise UserError(f"the rows have {have}, which no format has; rename the fields to {shapes}")
    raise UserError(
        f"the rows have {have}, which fits several formats; keep the fields of one: {shapes}"
    )


def content_id(row: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the row as canonical JSON (sorted keys, UTF-8)."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_example(row: Row, format_: str, place: str) -> Row:
    """One row of a known format as {"id", "messages", "completions"}; `place` is for messages."""
    messages, completions = _READERS[format_](row, place)
    check_messages(messages, place)
    if messages[-1]["role"] == "assistant" and completions:
        raise UserError(f"{place}: the prompt ends with an assistant's turn; end it with a user's")
    id_ = row.get("id", row.get("uid"))
    if id_ is not None and (isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == ""):
        raise UserError(f"{place}: the field 'id' is {id_!r}; it must be a text or a whole number")
    id_ = content_id(row) if id_ is None else str(id_)
    example = {"id": id_, "messages": messages, "completions": completions}
    return example | {"label": row["label"]} if format_ == "unpaired-preference" else example


Parts = tuple[list[dict[str, str]], list[str]]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _prompt(row: Row, name: str, place: str) -> list[dict[str, str]]:
    """A prompt field: a text is one user turn, a list is the conversation so far."""
    value = row[name]
    if isinstance(value, str):
        return [_user(value)]
    return _conversation(value, f"the field {name!r} of {place}")


def _conversation(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise UserError(f"{where} is a {type(value).__name__}; give a text or a list of messages")
    check_messages(value, where)
    return [dict(message) for message in value]


def _answer(row: Row, name: str, place: str) -> str:
    """A completion field: a text, or a list of one assistant message."""
    value = row[name]
    if isinstance(value, str):
        return value
    turns = _conversation(value, f"the field {name!r} of {place}")
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise UserError(f"{place}: the field {name!r} must be one assistant message")
    return turns[0]["content"]


def _read_preference(row: Row, place: str) -> Parts:
    answers = [_answer(row, name, place) for name in ("chosen", "rejected")]
    return _prompt(row, "prompt", place), answers


def _read_completion(row: Row, place: str) -> Parts:
    return _prompt(row, "prompt", place), [_answer(row, "completion", place)]


def _read_unpaired(row: Row, place: str) -> Parts:
    _check_fields(row, {"label": bool}, place)
    return _read_completion(row, place)


def _read_prompt(row: Row, place: str) -> Parts:
    return _prompt(row, "prompt", place), []


def _read_implicit(row: Row, place: str) -> Parts:
    """chosen and rejected are whole conversations, or texts, with the prompt as common start."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise UserError(
            f"{place}: chosen and rejected are texts without a prompt, and where the prompt ends "
            "cannot be known; add a field 'prompt'"
        )
    chosen = _conversation(chosen, f"the field 'chosen' of {place}")
    rejected = _conversation(rejected, f"the field 'rejected' of {place}")
    same = len(chosen) == len(rejected) > 1 and chosen[:-1] == rejected[:-1]
    if not same or chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise UserError(
            f"{place}: chosen and rejected must be the same conversation but for a last assistant "
            "message; add a field 'prompt' otherwise"
        )
    return chosen[:-1], [chosen[-1]["content"], rejected[-1]["content"]]


def _read_messages(row: Row, place: str) -> Parts:
    return _last_turn(_conversation(row["messages"], f"the field 'messages' of {place}"), place)


def _last_turn(turns: list[dict[str, str]], place: str) -> Parts:
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise UserError(f"{place}: the conversation must end with an assistant's turn to learn")
    return turns[:-1], [turns[-1]["content"]]


def _read_text(row: Row, place: str) -> Parts:
    _check_fields(row, {"text": str}, place)
    return [{"role": "assistant", "content": row["text"]}], []


def _read_alpaca(row: Row, place: str) -> Parts:
    _check_fields(row, {"instruction": str, "output": str}, place)
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise UserError(f"{place}: the field 'input' is a {type(given).__name__}; give a text")
    turns = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{place}: the field 'history' must hold [question, answer] pairs")
        turns += [_user(pair[0]), {"role": "assistant", "content": pair[1]}]
    question = f"{row['instruction']}\n{given}" if given else row["instruction"]
    return [*turns, _user(question)], [row["output"]]


def _read_sharegpt(row: Row, place: str) -> Parts:
    _check_fields(row, {"conversations": list}, place)
    turns = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for index, turn in enumerate(row["conversations"], start=1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            raise UserError(
                f"{place}: turn {index} of 'conversations' must have a 'from' out of "
                f"{', '.join(_SHAREGPT_ROLES)} and a 'value'"
            )
        turns.append({"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    check_messages(turns, place)
    return _last_turn(turns, place)


_READERS: dict[str, Callable[[Row, str], Parts]] = {
    "preference": _read_preference,
    "prompt-completion": _read_completion,
    "unpaired-preference": _read_unpaired,
    "prompt-only": _read_prompt,
    "implicit-preference": _read_implicit,
    "language-modeling": _read_messages,
    "text": _read_text,
    "alpaca": _read_alpaca,
    "sharegpt": _read_sharegpt,
}
