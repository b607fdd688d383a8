"""GSM8K: grade-school word problems, marked by the exact value of the final number.

Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems". The reference is the number
after `#### ` in a row's answer.
"""

from selfevo_jax.evaluate.file_task import FileSpec, Row
from selfevo_jax.judge.checkers import exact_number, find_numbers


def _gold(row: Row) -> str:
    found = find_numbers(row["answer"].rpartition("####")[2]) if "####" in row["answer"] else []
    if len(found) != 1:
        raise ValueError("the answer has no single number after '####'")
    return found[0]


SPEC = FileSpec(
    name="gsm8k",
    files={"train": "gsm8k/train_1000.jsonl", "test": "gsm8k/test.jsonl"},
    fields={"question": str, "answer": str},
    question=lambda row: row["question"],
    gold=_gold,
    check=exact_number,
    source="github.com/openai/grade-school-math, licence MIT",
)
