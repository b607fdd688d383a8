"""ReflectEvo's files: raw trials, D+, and D+- or Dpref, in the spellings of all its releases.

A first answer, the reflections on it and the answers after them become a tree of samples, as a run
of ours has them. What the environment says of an answer is no part of the answer's text.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from selfevo_jax.evolve.importing.line import Line
from selfevo_jax.evolve.importing.shape import UNKNOWN, Shape, asked, kept, marked, said
from selfevo_jax.evolve.reflection import reflect_messages
from selfevo_jax.judge.checkers import number_value
from selfevo_jax.records import Pair, Prompt, Record, Sample

TASK = "reflectevo"
OBSERVED = "\nObservation: "
ANSWER = "answer"  # what was read in a text of which no verdict is given
PROMPT = "prompt"  # the request behind a text, where the file has it
# The number of a trial, and of the first trial what only later ones have.
SAID_BY_PLACE = ("trial", "trail", "reflections", "reflection_source")
SIDES = ("chosen", "rejected")


def _question(line: Line) -> Prompt:
    meta = {"id": line.take("id", (str, int))} if "id" in line else {}
    if "test_list" in line:
        meta["test_list"] = line.take("test_list", (str, list))
    return asked(TASK, line.text("question"), line.text("answer"), **meta)


def raw(line: Line) -> Iterator[Record]:
    """All trials of a question: the first answer, then answers after a reflection on it."""
    prompt = _question(line)
    yield prompt
    yield from _trials(list(line.each("output")), prompt)
    yield from kept(prompt, line.rest())


def nested(line: Line) -> Iterator[Record]:
    """D+ and D+- as first released: whole trials under `trail1` and `trail2`, or two of these."""
    prompt = _question(line)
    names = [name for name in ("trail2", "trail2_true", "trail2_false") if name in line]
    records = [prompt, *_trials([line.inner(name) for name in ("trail1", *names)], prompt)]
    yield from records
    first, *later = (record for record in records if isinstance(record, Sample))
    reflections = [sample for sample in later if sample.parent_id == first.id]
    if names == ["trail2_true", "trail2_false"] and len(reflections) == 2:
        yield _pair(prompt, first, *reflections)
    yield from kept(prompt, line.rest())


def _trials(trials: Sequence[Line], prompt: Prompt) -> Iterator[Record]:
    """The first answer, and each later one below what it followed: (turn, what was told so far)."""
    known: dict[tuple[int, tuple[str, ...]], Sample] = {}
    for draw, trial in enumerate(trials):
        told = tuple(trial.texts("reflections"))
        if not known:
            records, turn = _answer(trial, prompt, 0), 1
            first = records[0]
        else:
            turn = _turn(trial)
            before = known.get((turn - 1, told[:-1]))
            earlier = () if before else told[:-1]  # of trials that the file does not have
            records = _again(trial, before or first, told[-1:], earlier, draw - 1)
        known[turn, told] = next(r for r in reversed(records) if isinstance(r, Sample))
        yield from records


def _turn(trial: Line) -> int:
    """The number of a later trial."""
    name = next((name for name in ("trial", "trail") if name in trial), "")
    number = trial.take(name, object) if name else 2
    return number if isinstance(number, int) and number > 2 else 2


def _again(
    trial: Line, parent: Sample, told: Sequence[str], earlier: Sequence[str], draw: int
) -> list[Record]:
    """A later trial: its reflection (none where it was made without), then its answer."""
    if not told:
        return _answer(trial, parent, draw)
    reflection = said(parent, told[0], _source(trial, "reflection_source"), draw)
    values: dict[str, Any] = {"earlier_reflections": list(earlier)} if earlier else {}
    if "reflection_prompt" in trial:
        values[PROMPT] = trial.text("reflection_prompt")
    return [reflection, *kept(reflection, values), *_answer(trial, reflection, 0)]


def _answer(trial: Line, parent: Prompt | Sample, draw: int) -> list[Record]:
    """An answer, its verdict, and what else the trial says."""
    text, values = _spoken(trial.text("reasoning", "scratchpad"))
    answer = said(parent, text, _source(trial, "reasoning_source"), draw)
    parsed = trial.texts("generated_answer")
    verdict = marked(answer, trial.take("is_correct", bool), parsed[0] if parsed else None)
    if "reason_prompt" in trial or "reasoning_prompt" in trial:
        values[PROMPT] = trial.text("reason_prompt", "reasoning_prompt")
    for name in SAID_BY_PLACE:
        if name in trial:
            trial.take(name, object)
    return [answer, verdict, *kept(answer, values | trial.rest())]


def _spoken(whole: str) -> tuple[str, dict[str, str]]:
    """(what the model wrote, what the environment said of it after that)."""
    text, seen, observation = whole.rpartition(OBSERVED)
    return (text, {"observation": observation}) if seen else (whole, {})


def _source(trial: Line, name: str) -> str:
    """The model that wrote a text; the published samples have N/A."""
    found = trial.texts(name)
    return found[0] if found and found[0] not in ("", "N/A") else UNKNOWN


def helped(line: Line) -> Iterator[Record]:
    """A row of D+: a wrong answer, a reflection, and the right answer after it."""
    prompt = _question(line)
    requests = [*line.texts("reason_prompt"), None, None]
    first = yield from _try(line, prompt, "first_trial", False, requests[0])
    (told,) = line.texts("reflections")[-1:] or [""]
    reflection = said(first, told)
    yield reflection
    for request in line.texts("reflect_prompt", "reflection_prompt"):
        yield from kept(reflection, {PROMPT: request})
    yield from _try(line, reflection, "second_trial", True, requests[1])
    yield from kept(prompt, line.rest())


def compared(line: Line) -> Iterator[Record]:
    """A row of D+- or Dpref: two reflections on one wrong answer, one preferred.

    Both sets have this shape. After the chosen one came a right answer in both. What the other led
    to is not said: it is right where it equals that answer or the gold one, else wrong, which makes
    the row one of Dpref or of D+-; of code, which other code may equal, there is no verdict.
    """
    prompt = _question(line)
    requests = [*line.texts("reason_prompt"), None]
    first = yield from _try(line, prompt, "first_trial", False, requests[0])
    sides = [said(first, line.text(f"reflection_{s}"), draw=n) for n, s in enumerate(SIDES)]
    yield from sides
    answer, *golds = (line.text(f"second_trial_answer_{s}") for s in reversed(SIDES))
    same = any(_equal(answer, gold) for gold in (*golds, prompt.answer or ""))
    code = "test_list" in prompt.meta or "\n" in answer.strip()
    marks = (True, None if code and not same else same)
    for side, reflection, correct in zip(SIDES, sides, marks, strict=True):
        yield from _try(line, reflection, "second_trial", correct, None, f"_{side}")
    yield _pair(prompt, first, *sides, *line.texts("reflection_prompt", "reflect_prompt"))
    yield from kept(prompt, line.rest())


def _equal(answer: str, gold: str) -> bool:
    """Whether two answers are the same number, or the same words but for case and spaces."""
    numbers = number_value(answer), number_value(gold)
    if None not in numbers:
        return numbers[0] == numbers[1]
    words = answer.casefold().split()
    return bool(words) and words == gold.casefold().split()


def _try(
    line: Line,
    parent: Prompt | Sample,
    name: str,
    correct: bool | None,
    request: str | None,
    side: str = "",
) -> Generator[Record, None, Sample]:
    """An answer in the fields NAME_reasoning and NAME_answer; returns it."""
    text, values = _spoken(line.text(f"{name}_reasoning{side}"))
    answer, parsed = said(parent, text), line.text(f"{name}_answer{side}")
    if isinstance(parent, Prompt):
        yield parent
    yield answer
    if correct is None:
        values[ANSWER] = parsed
    else:
        yield marked(answer, correct, parsed)
    yield from kept(answer, values | ({PROMPT: request} if request else {}))
    return answer


def _pair(
    prompt: Prompt, first: Sample, chosen: Sample, rejected: Sample, request: str = ""
) -> Pair:
    """The preference under the published request where the row has it, else under ours."""
    ours = reflect_messages((first, prompt))
    return Pair.make(
        prompt_id=prompt.id, chosen_id=chosen.id, rejected_id=rejected.id,
        prompt=({"role": "user", "content": request},) if request else tuple(ours),
        chosen=chosen.text.strip(), rejected=rejected.text.strip(),
    )  # fmt: skip


_QUESTION = {"question", "answer"}
_FIRST = _QUESTION | {"first_trial_reasoning", "first_trial_answer"}
_SECOND = {
    f"{field}_{side}"
    for field in ("reflection", "second_trial_reasoning", "second_trial_answer")
    for side in SIDES
}
SHAPES = (
    Shape("raw", frozenset(_QUESTION | {"output"}), raw),
    Shape(
        "d_plus",
        frozenset(_FIRST | {"reflections", "second_trial_reasoning", "second_trial_answer"}),
        helped,
    ),
    Shape("d_plus_minus or d_pref", frozenset(_FIRST | _SECOND), compared),
    Shape("trials by name", frozenset(_QUESTION | {"trail1"}), nested),
)
