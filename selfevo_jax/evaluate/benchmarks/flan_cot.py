"""The chain-of-thought sets of FLAN v2: AQuA, StrategyQA, QASC, CREAK.

Ling et al. 2017 (AQuA), Geva et al. 2021 (StrategyQA), Khot et al. 2020 (QASC), Onoe et al. 2021
(CREAK), as collected by Longpre et al. 2023, "The Flan Collection". The harness does not have
these rows; the wordings are ours. A quarter of each file is held out, by question.
"""

from functools import partial

from selfevo_jax.evaluate.data import Data, Row, divided
from selfevo_jax.evaluate.file_task import FileSpec, Meta, by_gold
from selfevo_jax.judge.checkers import Check, choice_letter, yes_no

SOURCE = "github.com/google-research/FLAN (flan/v2/cot_data), licence Apache-2.0"


def question(row: Row) -> str:
    r"""The question with its line ends, which the files write as the two characters `\n`."""
    return row["question"].replace("\\n", "\n")


def letter(row: Row) -> str:
    """The letter of "(C)". Raises ValueError for anything else."""
    answer = row["answer"].strip()
    if len(answer) != 3 or answer[0] + answer[2] != "()" or not answer[1].isupper():
        raise ValueError(f"the answer {answer!r} is not a letter in brackets")
    return answer[1]


def word(row: Row) -> str:
    """Yes or no. Raises ValueError for anything else."""
    if row["answer"] not in ("yes", "no"):
        raise ValueError(f"the answer {row['answer']!r} is neither yes nor no")
    return row["answer"]


def data(name: str) -> Data:
    """One of the four files."""
    return Data(
        files=divided(f"flan_cot/{name}.jsonl"),
        fields={"question": str, "answer": str, "rationale": str},
        source=SOURCE,
        divide=question,
    )


def lettered(name: str, letters: str) -> FileSpec:
    """A task whose answer is one of `letters`."""
    check = by_gold(partial(choice_letter, letters=letters))
    return FileSpec(name, data(name), question, letter, check, style="steps")


def yes_or_no(name: str, ending: str = "") -> FileSpec:
    """A task whose answer is yes or no."""

    def check(text: str, gold: str, meta: Meta) -> Check:
        return yes_no(text, gold == "yes")

    return FileSpec(name, data(name), lambda row: question(row) + ending, word, check)
