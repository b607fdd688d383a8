"""METEOR's files: questions, guidelines, distilled answers, kept revisions, marks on criteria."""

import json
import re
from collections.abc import Iterator
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.importing.line import Line
from selfevo_jax.evolve.importing.shape import Shape, asked, kept, marked, said
from selfevo_jax.evolve.lessons import lesson
from selfevo_jax.records import Prompt, Record, Row

TASK, WEAK, TEACHER = "meteor", "weak", "teacher"
# The published code asks for this word alone and searches it anywhere, so that a verdict such as
# "not Correct" passes; here it must open the evaluation.
_RIGHT = re.compile(r"\W*(evaluation\W+)?correct\b", re.IGNORECASE)


def _question(line: Line) -> Prompt:
    title = line.texts("question_title", "title")
    content = line.text("question_content")
    return asked(TASK, "\n\n".join(part for part in (*title, content) if part))


def raw(line: Line) -> Iterator[Record]:
    """A question as it was collected."""
    prompt = _question(line)
    yield prompt
    yield from kept(prompt, line.rest())


def nameless(value: Any) -> bool:
    """Whether a row is a guideline alone, as `guidelines.jsonl` has them."""
    return isinstance(value, dict) and "guideline" in value and "question_content" not in value


def aligned(value: Any, prompt: Prompt, place: str) -> Iterator[Record]:
    """A question, and the guideline in its row.

    The published code decodes the request with the reply, so that a guideline begins with its
    question; that part is left out.
    """
    line = Line(value if isinstance(value, dict) else {"guideline": value}, place)
    yield prompt
    guideline = said(prompt, _after_question(line.text("guideline"), prompt), WEAK)
    yield guideline
    yield from kept(guideline, line.rest())


def _after_question(text: str, prompt: Prompt) -> str:
    words = prompt.messages[-1]["content"].split()
    asked_again = re.match(r"\s*" + r"\s+".join(map(re.escape, words)) + r"\s*", text)
    return text[asked_again.end() :] if asked_again else text


def distilled(line: Line) -> Iterator[Record]:
    """A question, the weak model's guideline and the teacher's answer along it: to be imitated."""
    prompt = _question(line)
    guideline = said(prompt, line.text("guideline"), WEAK)
    answer = said(guideline, line.text("answer"), TEACHER)
    yield from (prompt, guideline, answer)
    yield lesson(prompt, answer, prompt.messages, answer.text)
    yield from kept(prompt, line.rest())


def iterated(line: Line) -> Iterator[Record]:
    """A kept answer with the teacher's last word on it; an example only where it is "correct".

    The published code also trained on answers that were never called right.
    """
    prompt = asked(TASK, line.text("question"))
    answer = said(prompt, line.text("answer"), WEAK)
    advice = said(answer, line.text("evaluation"), TEACHER)
    right = bool(_RIGHT.match(advice.text))
    yield from (prompt, answer, advice, marked(answer, right))
    if right:
        yield lesson(prompt, answer, prompt.messages, answer.text)
    yield from kept(answer, line.rest())


def evaluated(line: Line) -> Iterator[Record]:
    """The answers of several models and one row of marks for each."""
    prompt = asked(TASK, line.text("question"))
    yield prompt
    answers = line.inner("answers")
    samples = [said(prompt, answers.text(name), name) for name in answers.rest()]
    yield from samples
    for marks in _marks(line):
        number = marks.take("Answer", int)
        if not 1 <= number <= len(samples):
            raise UserError(f"{marks.place}: there is no answer {number}, only {len(samples)}")
        yield Row.make(source_id=samples[number - 1].id, values=marks.rest())
    yield from kept(prompt, line.rest())


def own(line: Line) -> Iterator[Record]:
    """A record of our own five-criteria evaluation (`.../criteria.evaluation/records.jsonl`)."""
    yield from evaluated(line.inner("values"))


def _marks(line: Line) -> Iterator[Line]:
    """The marks: a list, or, as the published code stores it, the judge's reply that holds one."""
    value = line.take("evaluation", (list, str))
    if isinstance(value, str):
        value = _parsed(value, line.place)
    yield from Line({"evaluation": value}, line.place).each("evaluation")


def _parsed(reply: str, place: str) -> Any:
    start, end = reply.find("["), reply.rfind("]")
    try:
        return json.loads(reply[start : end + 1])
    except ValueError as error:
        raise UserError(f"{place}: no list of marks in 'evaluation' ({error})") from error


SHAPES = (
    Shape("raw", frozenset({"question_content"}), raw),
    Shape("distilled", frozenset({"question_content", "guideline", "answer"}), distilled),
    Shape("iterative", frozenset({"question", "answer", "evaluation"}), iterated),
    Shape("evaluation", frozenset({"question", "answers", "evaluation"}), evaluated),
    Shape("our evaluation", frozenset({"id", "source_id", "values"}), own),
)
