"""BoolQ: a passage and a yes/no question about it.

Clark et al. 2019, "BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions".
The wording is ours, for models that reply in words.
"""

from selfevo_jax.evaluate.file_task import FileSpec, Row
from selfevo_jax.judge.checkers import Check, yes_no


def _question(row: Row) -> str:
    return f"{row['passage'].strip()}\n\nQuestion: {row['question'].strip()}? Answer yes or no."


def _check(text: str, gold: str) -> Check:
    return yes_no(text, gold == "yes")


SPEC = FileSpec(
    name="boolq",
    files={"train": "boolq/train.jsonl", "test": "boolq/dev.jsonl"},
    fields={"question": str, "passage": str, "answer": bool},
    question=_question,
    gold=lambda row: "yes" if row["answer"] else "no",
    check=_check,
    source="github.com/google-research-datasets/boolean-questions, licence CC BY-SA 3.0",
)
