"""SVAMP: one-step arithmetic word problems, marked by the exact value of the final number.

Patel et al. 2021, "Are NLP Models really able to Solve Simple Math Word Problems?".
"""

from selfevo_jax.evaluate.file_task import FileSpec, Row
from selfevo_jax.judge.checkers import exact_number


def _question(row: Row) -> str:
    body = row["Body"].strip()
    return f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {row['Question'].strip()}"


SPEC = FileSpec(
    name="svamp",
    files={"train": "svamp/svamp.jsonl", "test": "svamp/svamp.jsonl"},
    fields={"Body": str, "Question": str, "Answer": (int, float)},
    question=_question,
    gold=lambda row: f"{row['Answer']:.12g}",
    check=exact_number,
    source="github.com/arkilpatel/SVAMP, licence MIT",
)
