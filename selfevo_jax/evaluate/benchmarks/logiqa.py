"""LogiQA: four options on a passage that asks for logic.

Liu et al. 2020, "LogiQA: A Challenge Dataset for Machine Reading Comprehension with Logical
Reasoning". `logiqa` has the harness's wording, answered by the log-probability of each option.
The set states no licence, so it is not kept here: its 651 validation rows are read from the
public wheel of OpenAI's evals, downloaded with pip, hash-checked and never installed.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.benchmark import Benchmark, Choose, Shots
from selfevo_jax.evaluate.data import Data, Row, divided
from selfevo_jax.evaluate.file_task import FileSpec, by_gold
from selfevo_jax.judge.checkers import choice_letter
from selfevo_jax.weights.sources import Package, from_package

LETTERS = "ABCD"
MEMBER = "evals/registry/data/logiqa-logical-reasoning-plus/logiqa-logical-reasoning-plus.jsonl"
WHEEL = Package(
    name="evals",
    version="3.0.1.post1",
    wheel_sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    member=MEMBER,
    member_sha256="c9b355240cd6255ffdaa97e05cef7e157ab63d52e2cbaa286cdec95101022f3e",
)
_TEXT = re.compile(
    r"\s*Passage:(.*?)\s*Question:(.*?)\nA\. (.*?)\nB\. (.*?)\nC\. (.*?)\nD\. (.*?)\nAnswer:\s*",
    re.DOTALL,
)


def unpack(row: Row, place: str) -> Iterator[Row]:
    """A row of the evals wheel, or one that has the harness's fields already."""
    if "input" not in row:
        yield row
        return
    match = _TEXT.fullmatch(str(row["input"][-1]["content"]))
    if match is None:
        raise UserError(f"{place}: the message has no passage, question and four options")
    context, question, *options = (part.strip() for part in match.groups())
    options = [option.removeprefix(f"{x}.") for x, option in zip(LETTERS, options, strict=True)]
    label = str(row.get("ideal", "")).lower()
    yield {"context": context, "question": question, "options": options, "label": label}


def gold(row: Row) -> int:
    """The number of the right option. Raises ValueError unless the label is a, b, c or d."""
    label, letters = row["label"].strip(), LETTERS.lower()
    if len(label) != 1 or label not in letters or len(row["options"]) != len(LETTERS):
        raise ValueError(f"the label {label!r} is not a, b, c or d of four options")
    return letters.index(label)


def _prompt(row: Row) -> str:
    options = "".join(f"{x}. {o}\n" for x, o in zip(LETTERS, row["options"], strict=True))
    return f"Passage: {row['context']}\nQuestion: {row['question']}\nChoices:\n{options}Answer:"


def _question(row: Row) -> str:
    return _prompt(row).removesuffix("\nAnswer:") + "\nReply with the letter of the answer."


def passage(row: Row) -> str:
    """What rows on one passage share."""
    return row["context"]


DATA = Data(
    files={"test": "logiqa/logiqa.jsonl"},
    fields={"context": str, "question": str, "options": list, "label": str},
    source="the PyPI wheel evals==3.0.1.post1, fetched when the file is not there",
    hub=("EleutherAI/logiqa", "logiqa"),
    unpack=unpack,
    fetch=partial(from_package, WHEEL),
)
SPEC = FileSpec(
    name="logiqa",
    data=replace(DATA, files=divided(DATA.files["test"]), divide=passage),
    question=_question,
    gold=lambda row: LETTERS[gold(row)],
    check=by_gold(choice_letter),
    cluster=passage,
)
BENCHMARKS = (
    Benchmark(
        name="logiqa",
        data=DATA,
        prompt=_prompt,
        target=lambda row: row["options"][gold(row)],
        ask=Choose(choices=lambda row: row["options"], gold=gold),
        shots=Shots(split="test"),
        cluster=passage,
        version="1.0",
    ),
)
