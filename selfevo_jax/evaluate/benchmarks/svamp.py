"""SVAMP: one-step arithmetic word problems, marked by the exact value of the final number.

Patel et al. 2021, "Are NLP Models really able to Solve Simple Math Word Problems?". The harness
has no SVAMP; the wording is ours. A quarter of the one file is held out, by question.
"""

from selfevo_jax.evaluate.data import Data, Row, divided
from selfevo_jax.evaluate.file_task import FileSpec, by_gold
from selfevo_jax.judge.checkers import exact_number


def _question(row: Row) -> str:
    body = row["Body"].strip()
    return f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {row['Question'].strip()}"


SPEC = FileSpec(
    name="svamp",
    data=Data(
        files=divided("svamp/svamp.jsonl"),
        fields={"Body": str, "Question": str, "Answer": (int, float)},
        source="github.com/arkilpatel/SVAMP, licence MIT",
        divide=_question,
    ),
    question=_question,
    gold=lambda row: f"{row['Answer']:.12g}",
    check=by_gold(exact_number),
)
BENCHMARKS = ()
