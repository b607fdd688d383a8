"""A task of a run whose questions lie in files: split, shuffled and marked in our own wording."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import Data, Row, of_row, read_split, wanted
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

Meta = Mapping[str, Any]


@dataclass(frozen=True)
class FileSpec:
    """The declaration of one file task.

    `data` names a file for "train" and one for "test"; "validation" is a part of the training
    file, by question hash, unless `data` divides one file into all three. `gold` gives the right
    answer as text and raises ValueError where a row's does not parse. `check` marks a reply
    against that text and the fields `meta` of its row.
    `style` is how a question is put where nothing else is asked for, `max_new_tokens` the room
    for a reply, `metric` what its score is called, `code` whether replies are run. `figures` are
    the scores of a reply beside it that an evaluation reports.
    """

    name: str
    data: Data
    question: Callable[[Row], str]
    gold: Callable[[Row], str]
    check: Callable[[str, str, Meta], Check]
    meta: tuple[str, ...] = ()
    style: str = "plain"
    max_new_tokens: int = 256
    metric: str = "exact_match"
    code: bool = False
    cluster: Callable[[Row], str] | None = None
    figures: Callable[[str, Row], Mapping[str, float]] | None = None

    @property
    def files(self) -> Mapping[str, str]:
        """Split -> file below the data folder."""
        return self.data.files


def by_gold(check: Callable[[str, str], Check]) -> Callable[[str, str, Meta], Check]:
    """A checker that needs nothing but the gold answer."""
    return lambda text, gold, meta: check(text, gold)


class FileTask:
    """A `FileSpec` over a data folder, with a prompt style."""

    def __init__(self, spec: FileSpec, data_dir: str | Path | None = None, style: str = ""):
        style = style or spec.style
        check_choice(style, STYLES, f"style for {spec.name}")
        if data_dir is None and spec.data.fetch is None:
            raise UserError(
                f"{spec.name} needs data_dir, the folder that holds {wanted(spec.data)}"
            )
        self.spec, self.name, self.style = spec, spec.name, style
        self.folder = Path(data_dir or ".")

    def prompts(self, split: Split, n: int | None = None, seed: int = 0) -> Iterator[Prompt]:
        """See `Task.prompts`; with `n` None, every row in the order of the file."""
        check_choice(split, SPLITS, "split")
        made = [prompt for _, prompt in self.rows(split)]
        if n is None:
            return iter(made)
        if n > len(made):
            raise UserError(
                f"{self.name}: {n} {split} questions asked for, its files hold {len(made)} "
                "different ones: ask for at most that many"
            )
        return iter(shuffled(made, seed)[:n])

    def check(self, prompt: Prompt, text: str) -> Check:
        """See `Task.check`."""
        return self.spec.check(text, prompt.answer or "", prompt.meta)

    def inputs(self) -> dict[str, str]:
        """See `Task.inputs`."""
        splits = [
            read_split(self.name, self.spec.data, split, self.folder) for split in ("train", "test")
        ]
        return {name: digest for read in splits for name, digest in read.origin.items()}

    def sources(self) -> tuple["FileTask"]:
        """See `Task.sources`."""
        return (self,)

    def rows(self, split: Split) -> list[tuple[Row, Prompt]]:
        """Different questions of a split with their rows, in file order; none in two splits."""
        if split == "test":
            return list(self._read("test").values())
        held_out = self._read("test")
        return [
            pair
            for question, pair in self._read(split).items()
            if question not in held_out and self._belongs(question, split)
        ]

    def _belongs(self, question: str, split: Split) -> bool:
        """Whether a question of the training file is one of this split's."""
        if self.spec.data.divide is not None:
            return True  # the reader has divided the file
        return (split_of(question) == "validation") == (split == "validation")

    def _read(self, split: Split) -> dict[str, tuple[Row, Prompt]]:
        """Question text to row and prompt, the first of equal questions kept."""
        found: dict[str, tuple[Row, Prompt]] = {}
        if split == "validation" and self.spec.data.divide is None:
            split = "train"
        read = read_split(self.name, self.spec.data, split, self.folder)
        for row, place in zip(read.rows, read.places, strict=True):
            question = of_row(self.spec.question, row, place).strip()
            if question not in found:
                found[question] = row, self._prompt(question, row, place)
        return found

    def _prompt(self, question: str, row: Row, place: str) -> Prompt:
        content = STYLES[self.style].format(question=question)
        return Prompt.make(
            task=self.name,
            messages=({"role": "user", "content": content},),
            answer=of_row(self.spec.gold, row, place),
            meta={name: row[name] for name in self.spec.meta},
        )
