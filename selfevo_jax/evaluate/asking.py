"""A benchmark's rows as what a model is given: the whole prompt with its examples.

Examples, delimiters and turns are put together as the harness does it (0.4.13), so that prompts
agree to the character: description, examples as question + delimiter + answer + blank line, the
question, the prefix of the reply. In a chat the description is the system turn and the examples
are turns. Examples are drawn by one generator per benchmark in the order of the rows, so a
smaller --limit asks the same prompts.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.benchmark import Benchmark, Choose
from selfevo_jax.evaluate.data import Row, Rows, file_below, is_one_file, of_row, read_split
from selfevo_jax.evaluate.task import shuffled
from selfevo_jax.sample.protocol import Messages
from selfevo_jax.weights.storage import sha256_of_file

BETWEEN = "\n\n"
FEWSHOT_SEED = 1234  # the harness's default


@dataclass(frozen=True)
class Question:
    """One row ready to ask. `prompt` is a text as it is, or the messages of a chat.

    `prefix` begins a chat's reply. `choices` are the continuations to compare, delimiter
    included; none where the model is to write.
    """

    number: int
    row: Row
    place: str
    target: str
    prompt: Messages | str
    prefix: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """How the questions of an evaluation are put: see `selfevo eval --help`."""

    num_fewshot: int | None = None
    chat: bool = False
    multiturn: bool = True
    seed: int = 0
    fewshot_seed: int = FEWSHOT_SEED


@dataclass(frozen=True)
class Pool:
    """What examples are drawn from.

    wanted       examples of a question
    description  what opens the prompt, where a file has it
    tested       whether the questions themselves are among the rows
    origin       the files behind it, as in `Rows`
    """

    wanted: int
    description: str = ""
    rows: tuple[Row, ...] = ()
    tested: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)


def questions(benchmark: Benchmark, read: Rows, pool: Pool, wording: Wording) -> Iterator[Question]:
    """The questions of all rows, in order. Raises UserError for a gold that does not parse."""
    draw = random.Random(wording.fewshot_seed)
    numbered = list(zip(range(len(read.rows)), read.rows, read.places, strict=True))
    for number, row, place in shuffled(numbered, wording.seed) if benchmark.own else numbered:
        shots = _pick(benchmark, pool, draw, row)
        target = of_row(benchmark.target, row, place)
        description = pool.description or benchmark.description(row)
        turns = [(benchmark.prompt(shot), benchmark.target(shot)) for shot in shots]
        prompt, prefix = _put(benchmark, description, turns, row, wording)
        choices = of_row(partial(_choices, benchmark, wording.chat), row, place)
        yield Question(number, row, place, target, prompt, prefix, choices)


def pool_of(benchmark: Benchmark, where: str | Path | None, wording: Wording) -> Pool:
    """Where the examples of an evaluation come from. Raises UserError where there are none."""
    wanted = benchmark.num_fewshot if wording.num_fewshot is None else wording.num_fewshot
    shots = benchmark.shots
    given = Pool(wanted, rows=shots.rows)
    if shots.file is not None:
        name, holds, load = shots.file
        path = file_below(benchmark.name, name, holds, where)
        given = Pool(wanted, *load(path), origin={name: sha256_of_file(path)})
    return given if given.rows or not wanted else _of_split(benchmark, where, given)


def _of_split(benchmark: Benchmark, where: str | Path | None, given: Pool) -> Pool:
    """The pool with the rows of the split that examples are drawn from."""
    shots = benchmark.shots
    if shots.split is None:
        raise UserError(f"{benchmark.name} has no examples to show; leave out --num_fewshot")
    found = read_split(benchmark.name, benchmark.data, shots.split, where)
    for row, place in zip(found.rows, found.places, strict=True):
        of_row(benchmark.target, row, place)
    tested = shots.spare or shots.split == benchmark.split or is_one_file(where)
    origin = {**given.origin, **found.origin}
    return replace(given, rows=found.rows, tested=tested, origin=origin)


def _pick(benchmark: Benchmark, pool: Pool, draw: random.Random, row: Row) -> Sequence[Row]:
    """The examples of a row, never the row itself."""
    wanted, rows = pool.wanted, pool.rows
    if wanted + pool.tested > len(rows):
        raise UserError(
            f"{benchmark.name} has {len(rows)} examples and --num_fewshot asks for {wanted}"
        )
    if not wanted:
        return ()
    own = row if pool.tested else None
    if benchmark.shots.pick == "first":
        return [shot for shot in rows if shot != own][:wanted]
    left = [shot for shot in draw.sample(rows, wanted + pool.tested) if shot != own][:wanted]
    return left if len(left) == wanted else draw.sample([r for r in rows if r != own], wanted)


def _put(
    benchmark: Benchmark,
    description: str,
    turns: Sequence[tuple[str, str]],
    row: Row,
    wording: Wording,
) -> tuple[Messages | str, str]:
    question, prefix = benchmark.prompt(row), benchmark.prefix(row)
    gap = benchmark.delimiter
    if prefix and not (question[-1:].isspace() or prefix[:1].isspace()):
        question += gap
    shown = "".join(f"{asked}{gap}{answer}{BETWEEN}" for asked, answer in turns)
    if not wording.chat:
        return f"{description}{shown}{question}{prefix}", ""
    messages = [_turn("system", description)] if description else []
    if wording.multiturn:
        for asked, answer in turns:
            messages += [_turn("user", asked), _turn("assistant", answer)]
        return (*messages, _turn("user", question)), prefix
    return (*messages, _turn("user", shown + question)), prefix


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _choices(benchmark: Benchmark, chat: bool, row: Row) -> tuple[str, ...]:
    """Raises ValueError for a choice that is nothing: it has no probability to compare."""
    if not isinstance(benchmark.ask, Choose):
        return ()
    choices = benchmark.ask.choices(row)
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError("an answer to choose from is empty or no text")
    gap = "" if chat else benchmark.delimiter
    return tuple(f"{gap}{choice}" for choice in choices)
