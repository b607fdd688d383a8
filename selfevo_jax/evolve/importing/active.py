"""The active-selection study's files: what was acquired, MMLU mixes, outputs of its baseline."""

import re
from collections.abc import Iterator
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import Row as Fields
from selfevo_jax.evolve.importing.line import Line
from selfevo_jax.evolve.importing.shape import Shape, asked, kept, said
from selfevo_jax.evolve.lessons import lesson
from selfevo_jax.records import Record

TASK, LETTERS = "active", "ABCD"
# The data sets are named after how they were acquired; what a row does not say is in the name.
_ACQUIRED = re.compile(
    r"acquired_dataset_(?P<strategy>\w+?)_budget(?P<budget>\d+)(_iter(?P<m>\d+))?"
)


def acquired(line: Line) -> Iterator[Record]:
    """A question of the pool that was chosen, with the answer that was bought."""
    prompt = asked(TASK, line.text("inputs"), line.text("targets"))
    yield from (prompt, lesson(prompt, prompt, prompt.messages, prompt.answer or ""))
    found = _ACQUIRED.search(line.place)
    values = {} if found is None else {
        "strategy": found["strategy"], "budget": int(found["budget"]),
        "iteration": int(found["m"] or 1),
    }  # fmt: skip
    yield from kept(prompt, values | line.rest())


def mmlu(line: Line) -> Iterator[Record]:
    """A question of the MMLU mix, options shown, its gold answer a letter."""
    options, answer = line.texts("choices"), line.take("answer", int)
    if len(options) != len(LETTERS) or not 0 <= answer < len(LETTERS):
        raise UserError(f"{line.place}: an MMLU row has 4 choices and an answer from 0 to 3")
    shown = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=True)]
    question = "\n".join([line.text("question").strip(), *shown])
    prompt = asked("mmlu", question, LETTERS[answer], **line.rest())
    yield prompt


def answered(line: Line) -> Iterator[Record]:
    """A model's letter for a FLAN question; "(A)" is also what was written where none was found."""
    prompt = asked("aqua", line.text("Prompt"))
    yield from (prompt, said(prompt, line.text("Answer"), _author(line.place)))
    yield from kept(prompt, {name: value for name, value in line.rest().items() if value})


def replied(line: Line) -> Iterator[Record]:
    """A model's reply to a question of BIG-Bench-Hard."""
    prompt = asked("bbh", line.text("Q"))
    yield from (prompt, said(prompt, line.text("A"), _author(line.place)))


def _author(place: str) -> str:
    """The files of outputs are named TASK_MODEL, both with underscores: the name is kept whole."""
    return Path(place.rpartition(":")[0]).stem


def blocks(path: Path) -> Iterator[tuple[str, Fields]]:
    """(file:line, {"Q", "A"}) of the text files of outputs: blocks that "Q: " and "A: " begin."""
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Q: ")]
    if not starts or any(line.strip() for line in lines[: starts[0]]):
        raise UserError(f"{path}:1: the file does not begin with 'Q: '; it holds no outputs")
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        question, mark, answer = "\n".join(lines[start:end]).partition("\nA: ")
        fields = {"Q": question.removeprefix("Q: ").strip()}
        yield f"{path}:{start + 1}", fields | ({"A": answer.strip()} if mark else {})


SHAPES = (
    Shape("acquired", frozenset({"inputs", "targets"}), acquired),
    Shape("mmlu", frozenset({"question", "choices", "answer"}), mmlu),
    Shape("flan outputs", frozenset({"Prompt", "Answer"}), answered),
    Shape("bbh outputs", frozenset({"Q", "A"}), replied),
)
