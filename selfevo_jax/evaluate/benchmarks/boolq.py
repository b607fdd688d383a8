"""BoolQ: a passage and a yes/no question about it.

Clark et al. 2019, "BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions".
`boolq` is the harness's wording, answered by the log-probability of "no" and "yes".
"""

from selfevo_jax.evaluate.benchmark import Benchmark, Choose, Shots
from selfevo_jax.evaluate.data import Data, Row
from selfevo_jax.evaluate.file_task import FileSpec, Meta
from selfevo_jax.judge.checkers import Check, yes_no

DATA = Data(
    files={"train": "boolq/train.jsonl", "test": "boolq/dev.jsonl"},
    fields={"question": str, "passage": str, "answer": bool},
    source="github.com/google-research-datasets/boolean-questions, licence CC BY-SA 3.0",
    hub=("google/boolq", None),
    hub_splits={"test": "validation"},
)
CHOICES = ("no", "yes")


def _question(row: Row) -> str:
    return f"{row['passage'].strip()}\n\nQuestion: {row['question'].strip()}? Answer yes or no."


def _check(text: str, gold: str, meta: Meta) -> Check:
    return yes_no(text, gold == "yes")


def passage(row: Row) -> str:
    """What rows with one passage share: its title, or the passage where there is none."""
    return str(row.get("title") or row["passage"])


SPEC = FileSpec(
    name="boolq",
    data=DATA,
    question=_question,
    gold=lambda row: CHOICES[row["answer"]],
    check=_check,
    cluster=passage,
)
BENCHMARKS = (
    Benchmark(
        name="boolq",
        data=DATA,
        prompt=lambda row: f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:",
        target=lambda row: CHOICES[row["answer"]],
        ask=Choose(choices=lambda row: CHOICES, gold=lambda row: int(row["answer"])),
        shots=Shots(split="train", spare=True),
        cluster=passage,
        version="2.0",
    ),
)
