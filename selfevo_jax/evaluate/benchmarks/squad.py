"""SQuAD 1.1 and 2.0: an answer copied from a passage, or none; official exact match and F1.

Rajpurkar et al. 2016 and 2018. `squadv2` has the harness's wording. Its reading "none" takes the
reply as it is; "no-answer" (ours) takes a reply of "unanswerable" as the empty answer, which is
what the question without an answer wants. Both are also scored at the best threshold on the
log-probability of that word (`best_exact`, `best_f1`). `squad` asks the answerable ones in the
same words.
"""

from collections.abc import Sequence
from dataclasses import replace

from selfevo_jax.evaluate.benchmark import Benchmark, Generate, Reading, Shots
from selfevo_jax.evaluate.data import Data, Row
from selfevo_jax.evaluate.file_task import FileSpec, Meta
from selfevo_jax.judge.checkers import Check, final_answer, normalise, squad_scores

NO_ANSWER = "unanswerable"
SECOND = Data(
    files={"train": "squad/train_v1.1.jsonl", "test": "squad/dev_v2.0_4articles.jsonl"},
    fields={"title": str, "context": str, "question": str, "answers": dict},
    source="rajpurkar.github.io/SQuAD-explorer, licence CC BY-SA 4.0",
    hub=("rajpurkar/squad_v2", None),
    hub_splits={"test": "validation"},
)


def golds(row: Row) -> Sequence[str]:
    """The right answers; none where the passage has none. Raises ValueError when they are bad."""
    texts = row["answers"].get("text")
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("the field 'answers' has no list of strings 'text'")
    return list(texts)


FIRST = replace(SECOND, hub=("rajpurkar/squad", None), keep=lambda row: bool(golds(row)))


def _prompt(row: Row) -> str:
    background = f"Title: {row['title']}\n\nBackground: {row['context']}"
    return f"{background}\n\nQuestion: {row['question']}\n\nAnswer:"


def _target(row: Row) -> str:
    return next(iter(golds(row)), NO_ANSWER)


def _scores(answer: str, row: Row) -> dict[str, float]:
    exact, f1 = squad_scores(answer, golds(row))
    kind = "HasAns" if golds(row) else "NoAns"
    return {"exact": exact, "f1": f1, f"{kind}_exact": exact, f"{kind}_f1": f1}


def as_it_is(text: str, row: Row) -> Reading:
    """The reply is the answer."""
    return Reading(text.strip() or None, _scores(text, row))


def with_no_answer(text: str, row: Row) -> Reading:
    """As `as_it_is`, and "unanswerable" is the empty answer."""
    answer = "" if normalise(text) == NO_ANSWER else text
    return Reading(text.strip() or None, _scores(answer, row))


def _question(row: Row) -> str:
    asked = "Answer with words of the passage, or with 'unanswerable' if it has no answer."
    return f"{row['context'].strip()}\n\nQuestion: {row['question'].strip()}\n{asked}"


def _check(text: str, gold: str, meta: Meta) -> Check:
    answer = final_answer(text)
    exact, f1 = squad_scores("" if normalise(answer) == NO_ANSWER else answer, golds(meta))
    return Check(f1, exact == 1.0, answer or None)


def _article(row: Row) -> str:
    return row["title"]


SPEC = FileSpec(
    name="squad",
    data=SECOND,
    question=_question,
    gold=_target,
    check=_check,
    meta=("answers",),
    metric="f1",
    max_new_tokens=64,
    cluster=_article,
)
BENCHMARKS = (
    Benchmark(
        name="squadv2",
        data=SECOND,
        prompt=_prompt,
        target=_target,
        ask=Generate({"none": as_it_is, "no-answer": with_no_answer}, stop=("\n",), none=NO_ANSWER),
        shots=Shots(split="train"),
        cluster=_article,
        version="3",
    ),
    Benchmark(
        name="squad",
        data=FIRST,
        prompt=_prompt,
        target=_target,
        ask=Generate({"none": as_it_is}, stop=("\n",), max_new_tokens=64),
        shots=Shots(split="train"),
        cluster=_article,
    ),
)
