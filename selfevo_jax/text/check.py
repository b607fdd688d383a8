"""What is in a data source and what is wrong with it, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.text.data_files import Row, content_id, detect_format, to_example
from selfevo_jax.text.datasets import numbered_rows

KINDS = {0: "prompts alone", 1: "with a completion", 2: "preference pairs"}


@dataclass
class Check:
    """The findings. `format`: what the rows were taken for (`data_files.detect_format`), "" where
    none could be read. `faults`: what must not be trained on -> where; `notes`: what is only worth
    knowing -> how often; `lengths`: part -> its sizes, in characters or tokens."""

    rows: int = 0
    format: str = ""
    kinds: Counter[int] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether there is nothing that must not be trained on."""
        return not self.faults


def check(source: str | Path, size: Callable[[str], int] = len, max_length: int = 0) -> Check:
    """Reads all of a source (`text.datasets`); `size` measures a text, and prompt and completion
    together longer than `max_length` (0: no limit) are a fault. A line that cannot be parsed ends
    the reading with a UserError: what follows it is unknown."""
    found = Check()
    ids: dict[str, int] = {}
    contents: dict[str, bool | None] = {}
    prompts: set[str] = set()
    for number, row in numbered_rows(source):
        found.rows += 1
        try:
            kind = detect_format([row])
            found.format = found.format or kind
            if kind != found.format:
                raise UserError(f"a {kind} row in a file of {found.format} rows")
            example = to_example(row, found.format, f"line {number}")
        except UserError as error:
            _add(found, _without_place(str(error), number), number)
            continue
        _note(found, example, number, ids, contents, prompts)
        _measure(found, example, number, size, max_length)
    return found


def report(source: str | Path, found: Check, unit: str = "characters") -> str:
    """The findings as lines of text."""
    kinds = ", ".join(f"{count} {KINDS.get(n, n)}" for n, count in sorted(found.kinds.items()))
    taken = f" in the format {found.format}" if found.format else ""
    lines = [f"{source}: {found.rows} rows{taken}" + (f": {kinds}" if kinds else "")]
    for part, sizes in found.lengths.items():
        low, middle, high = _quantiles(sizes)
        lines.append(f"  {part}: {low} to {high} {unit}, half up to {middle}")
    lines += [f"  note: {count} {note}" for note, count in sorted(found.notes.items())]
    for fault, places in found.faults.items():
        where = ", ".join(places[:5]) + (", ..." if len(places) > 5 else "")
        lines.append(f"  WRONG: {fault}" + (f" ({len(places)}: lines {where})" if where else ""))
    return "\n".join([*lines, "all sound" if found.sound else "not sound: mend or drop these rows"])


def _add(found: Check, fault: str, number: int) -> None:
    found.faults.setdefault(fault, []).append(str(number))


def _without_place(message: str, number: int) -> str:
    """The same fault in many lines is one finding."""
    return message.replace(f"line {number}: ", "").replace(f" of line {number}", "")


def _note(found, example: Row, number: int, ids, contents, prompts) -> None:
    completions = example["completions"]
    found.kinds[len(completions)] += 1
    if "label" in example:
        found.notes[f"rows labelled {'desirable' if example['label'] else 'not desirable'}"] += 1
    if example["id"] in ids:
        _add(found, "an id that came before", number)
    ids.setdefault(example["id"], number)
    content = content_id({key: example[key] for key in ("messages", "completions")})
    if content in contents:
        earlier = contents[content]
        found.notes["rows whose content came before"] += 1
        if earlier != example.get("label"):
            _add(found, "content that came before with the other label", number)
    contents.setdefault(content, example.get("label"))
    prompt = content_id({"messages": example["messages"]})
    if prompt in prompts:
        found.notes["rows whose prompt came before"] += 1
    prompts.add(prompt)
    if any(not text.strip() for text in completions):
        _add(found, "an empty completion", number)
    if not example["messages"][-1]["content"].strip():
        _add(found, "an empty prompt", number)
    if len(completions) == 2 and completions[0] == completions[1]:
        _add(found, "equal chosen and rejected", number)


def _measure(found, example: Row, number: int, size, max_length: int) -> None:
    prompt = sum(size(message["content"]) for message in example["messages"])
    pair = len(example["completions"]) == 2
    names = ("chosen", "rejected") if pair else ("completion",)
    sizes = [size(text) for text in example["completions"]]
    found.lengths.setdefault("prompt", []).append(prompt)
    for name, length in zip(names, sizes, strict=False):
        found.lengths.setdefault(name, []).append(length)
    if max_length and prompt + max(sizes, default=0) > max_length:
        _add(found, f"more than {max_length} in prompt and completion", number)


def _quantiles(sizes: list[int]) -> tuple[int, int, int]:
    ordered = sorted(sizes)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]
