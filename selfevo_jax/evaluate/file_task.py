"""Tasks whose questions lie in JSONL files: read, validated row by row, split and marked."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.task import (
    SPLITS,
    STYLES,
    Split,
    check_choice,
    shuffled,
    split_of,
)
from selfevo_jax.judge.checkers import Check
from selfevo_jax.records import Prompt

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FileSpec:
    """The declaration of one file task.

    `files` maps each split to a file below the data folder; when both name the same file, each
    question's text decides its split. `fields` are the needed fields with their JSON types.
    `gold` gives the right answer as text and raises ValueError where a row's does not parse.
    `check` marks a reply against that text.
    """

    name: str
    files: Mapping[Split, str]
    fields: Mapping[str, type | tuple[type, ...]]
    question: Callable[[Row], str]
    gold: Callable[[Row], str]
    check: Callable[[str, str], Check]
    source: str


class FileTask:
    """A `FileSpec` over a data folder, with a prompt style."""

    def __init__(self, spec: FileSpec, data_dir: str | Path | None = None, style: str = "plain"):
        check_choice(style, STYLES, f"style for {spec.name}")
        if data_dir is None:
            raise UserError(f"{spec.name} needs data_dir, the folder that holds {_wanted(spec)}")
        self.spec, self.name, self.style = spec, spec.name, style
        self.folder = Path(data_dir)

    def prompts(self, split: Split, n: int | None = None, seed: int = 0) -> Iterator[Prompt]:
        """See `Task.prompts`; with `n` None, every row in the order of the file."""
        check_choice(split, SPLITS, "split")
        made = self._all(split)
        if n is None:
            return iter(made)
        if n > len(made):
            raise UserError(
                f"{self.name}: {n} {split} questions asked for, {self.spec.files[split]} has "
                f"{len(made)} different ones: ask for at most that many"
            )
        return iter(shuffled(made, seed)[:n])

    def check(self, prompt: Prompt, text: str) -> Check:
        """See `Task.check`."""
        return self.spec.check(text, prompt.answer or "")

    def _all(self, split: Split) -> list[Prompt]:
        """Every different question of a split, in order; test questions never go to train."""
        files = self.spec.files
        questions = self._read(files[split])
        if files["train"] == files["test"]:
            return [p for q, p in questions.items() if split_of(q) == split]
        held_out = self._read(files["test"]) if split == "train" else {}
        return [prompt for question, prompt in questions.items() if question not in held_out]

    def _read(self, file: str) -> dict[str, Prompt]:
        """Question text to prompt, the first of equal questions kept."""
        found: dict[str, Prompt] = {}
        path = self.folder / file
        for number, row in read_rows(path, self.spec):
            question = self.spec.question(row).strip()
            if question not in found:
                found[question] = self._prompt(question, row, f"{path}:{number}")
        return found

    def _prompt(self, question: str, row: Row, where: str) -> Prompt:
        try:
            gold = self.spec.gold(row)
        except ValueError as error:
            raise UserError(f"{where}: {error}; mend the row or take it out") from error
        content = STYLES[self.style].format(question=question)
        return Prompt.make(
            task=self.name,
            messages=({"role": "user", "content": content},),
            answer=gold,
            meta={},
        )


def read_rows(path: Path, spec: FileSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) with every needed field present and of its type, else UserError."""
    if not path.is_file():
        raise UserError(f"{spec.name}: no file {path}; {_wanted(spec)}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _row(line, f"{path}:{number}", spec)


def _row(line: bytes, where: str, spec: FileSpec) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object ({error}); one object per line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: {type(row).__name__} where a JSON object belongs")
    for name, kind in spec.fields.items():
        if name not in row:
            raise UserError(
                f"{where}: the field {name!r} is missing; {spec.name} needs "
                f"{', '.join(spec.fields)}"
            )
        if not isinstance(row[name], kind):
            raise UserError(f"{where}: the field {name!r} holds a {type(row[name]).__name__}")
    return row


def _wanted(spec: FileSpec) -> str:
    files = " and ".join(sorted(set(spec.files.values())))
    return f"{files} (JSON lines with {', '.join(spec.fields)}; source: {spec.source})"
