"""What METEOR says and keeps: requests for guidelines, answers and advice, and what comes of them.

Pure functions of rows. Whatever text of a model goes into a request is cut to a number of letters
in its own field, so that the end of the request is never lost.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.lessons import lesson
from selfevo_jax.evolve.pairs import pair_of
from selfevo_jax.judge.critique import critic_prompt, spoken_verdict
from selfevo_jax.judge.material import neutral_fields
from selfevo_jax.records import Example, Pair, Prompt, Row, Sample, Verdict
from selfevo_jax.text.prompt_files import PromptFile

ADVICE = critic_prompt("advice")
LABELS = ADVICE.listed("labels")
STAND_IN = (
    "The answer is not right. Go through it step by step, find the first mistake and mend it."
)
PAIR = "pair"
SKIPPED = (
    "skipped: no pair; a higher self_train.length_ratio, or another costly decoding, makes some"
)
_VERDICT_LINE = re.compile(r"verdict\W*:\W*\w+[^\n]*", re.IGNORECASE)
Messages = Sequence[Mapping[str, str]]


def text_of(prompt: Prompt) -> str:
    """What is asked."""
    return prompt.messages[-1]["content"]


def last_question(row: Any) -> Messages:
    """The messages of a prompt, or of the one that ends a row, as they are."""
    return (row[-1] if isinstance(row, tuple) else row).messages


def requested(row: Any, file: PromptFile, field: str) -> Messages:
    """A prompt file about the question alone; `row` is a prompt or ends with it."""
    prompt = row[-1] if isinstance(row, tuple) else row
    return file.fill({"field": field, "question": text_of(prompt)})


def guided(row: tuple[Sample, Prompt], file: PromptFile, field: str, letters: int) -> Messages:
    """The request for an answer along the guideline."""
    guideline, prompt = row
    shown = guideline.text.strip()[:letters]
    return file.fill({"field": field, "question": text_of(prompt), "guideline": shown})


def gold_reply(row: tuple[Sample, Prompt]) -> list[Sample]:
    """The gold answer in the place of a teacher's; `row` is (guideline, prompt)."""
    guideline, prompt = row
    if not prompt.answer:
        raise UserError(
            f"prompt {prompt.id} has no gold answer to stand in for a teacher's; "
            "set --config.distil.by=teacher"
        )
    return [
        Sample.make(
            prompt_id=prompt.id, parent_id=guideline.id, text=prompt.answer, tokens=(), logps=(),
            finish="stop", seed=0, policy="gold",
        )
    ]  # fmt: skip


def reasoned(prompt: Prompt, file: PromptFile) -> Messages:
    """The question with the request for reasons before the answer."""
    return file.fill({"question": text_of(prompt)})


def advice_messages(row: tuple[Sample, Prompt], letters: int) -> Messages:
    """The question to the teacher: is this answer right, and if not, how is it mended?"""
    answer, prompt = row
    fields, _ = neutral_fields({"instruction": text_of(prompt), "output": answer.text})
    return ADVICE.fill(fields, letters)


def revise_messages(row: tuple[Sample, Row, Prompt], file: PromptFile, letters: int) -> Messages:
    """The question again, with the previous answer and the advice on it."""
    answer, opinion, prompt = row
    fields = {"answer": answer.text.strip(), "advice": opinion.values["advice"]}
    shown = {name: text[:letters] for name, text in fields.items()}
    return file.fill({"question": text_of(prompt), **shown})


def rule_opinion(row: tuple[Sample, Verdict], turn: int) -> list[Row]:
    """The task's own verdict, with words that give nothing away."""
    answer, verdict = row
    return [_opinion(answer, turn, verdict.correct, "" if verdict.correct else STAND_IN)]


def judge_opinion(row: tuple[Sample, Sample], turn: int) -> list[Row]:
    """A teacher's reply on an answer: right is None where it gives no verdict or no advice."""
    reply, answer = row
    label = spoken_verdict(reply.text, LABELS)
    advice = _VERDICT_LINE.sub("", reply.text).strip()
    if label == LABELS[1].lower() and advice:
        return [_opinion(answer, turn, False, advice)]
    return [_opinion(answer, turn, True if label == LABELS[0].lower() else None, "")]


def _opinion(answer: Sample, turn: int, right: bool | None, advice: str) -> Row:
    return Row.make(source_id=answer.id, values={"turn": turn, "right": right, "advice": advice})


def right_lesson(row: tuple[Sample, Row, Prompt]) -> list[Example]:
    """The question and the answer to it that was judged right; of any other answer nothing."""
    answer, opinion, prompt = row
    if opinion.values["right"] is not True:
        return []
    return [lesson(prompt, answer, prompt.messages, answer.text)]


def wrong_answer(row: tuple[Sample, Row, Prompt]) -> list[Sample]:
    """The answer, where it was judged wrong; one that nobody could judge is left."""
    return [row[0]] if row[1].values["right"] is False else []


def part_of(prompts: Sequence[Prompt], part: int, parts: int) -> list[Prompt]:
    """The `part`th (from 0) of nearly equal parts of the questions."""
    return list(prompts[len(prompts) * part // parts : len(prompts) * (part + 1) // parts])


def burst(waiting: Sequence[Example], every: int, last: bool) -> list[Example]:
    """The first `every` kept answers; nothing of fewer, but at the last call all that are left."""
    return list(waiting[:every]) if last or len(waiting) >= every else []


def turns(opinions: Sequence[Row]) -> list[Row]:
    """What was said in each turn: right, wrong, or no verdict that could be read."""
    rows = []
    for turn in sorted({row.values["turn"] for row in opinions}):
        said = [row.values["right"] for row in opinions if row.values["turn"] == turn]
        counts: dict[str, Any] = {"turn": turn, "n": len(said)}
        for name, value in (("right", True), ("wrong", False), ("failed", None)):
            counts[name] = said.count(value)
        rows.append(Row.make(source_id=f"turn {turn}", values=counts))
    return rows


Decoded = Sequence[tuple[Sample, Sample, Prompt]]  # (costly, cheap, prompt) of one question


def costly_over_cheap(row: Decoded, length_ratio: float) -> list[Pair]:
    """The likeliest of the costly decodings (by token) over the cheap one, where they are `fit`."""
    cheap, prompt = row[0][1:]
    best = max((costly for costly, _, _ in row), key=mean_logp)
    return [pair_of(prompt, best, cheap)] if fit(best, cheap, length_ratio) == PAIR else []


def fit(best: Sample, cheap: Sample, length_ratio: float) -> str:
    """Whether the two decodings make a pair, or why they do not.

    Not where both say the same, where one is empty, or where one is over `length_ratio` times as
    long as the other: length alone must not be what is learned.
    """
    texts, lengths = [s.text.strip() for s in (best, cheap)], [len(s.tokens) for s in (best, cheap)]
    if not all(texts):
        return "one is empty"
    if texts[0] == texts[1]:
        return "both the same"
    return PAIR if max(lengths) <= length_ratio * min(lengths) else "one too long"


def decodings(rows: Sequence[Decoded], length_ratio: float) -> list[Row]:
    """How many questions made a pair to learn from, and why the others did not."""
    found = [
        fit(max((costly for costly, _, _ in row), key=mean_logp), row[0][1], length_ratio)
        for row in rows
    ]
    values: dict[str, Any] = {"questions": len(found), PAIR: found.count(PAIR)}
    values |= {why: found.count(why) for why in sorted({*found} - {PAIR})}
    if not values[PAIR]:
        values["self-training"] = SKIPPED
    return [Row.make(source_id="decodings", values=values)]


def mean_logp(sample: Sample) -> float:
    """Mean log-probability of a token; minus infinity of no tokens."""
    return sum(sample.logps) / len(sample.logps) if sample.logps else float("-inf")
