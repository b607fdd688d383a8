"""Asking a model the questions of a benchmark, and reading what it says: one `Outcome` each.

Outcomes come in the order in which the model finishes and depend on their question alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from selfevo_jax.evaluate.asking import Question
from selfevo_jax.evaluate.benchmark import Benchmark, Choose, Generate, Reading
from selfevo_jax.evaluate.metrics import pass_at_k
from selfevo_jax.records import Record, content_id
from selfevo_jax.sample.http.failures import RequestsFailed
from selfevo_jax.sample.protocol import (
    Completion,
    Generator,
    LabelRequest,
    Request,
    SamplingParams,
    ScoreRequest,
)

PASSES = (10, 100)  # k of pass@k beside 1, where there are enough replies
WINDOW = 256  # questions with choices that are looked at together
DIGITS = 5  # kept of a log-probability; further ones differ with the batch's shape


@dataclass(frozen=True, slots=True)
class Outcome(Record):
    """One answered question.

    `replies` are the texts written (or the choices offered), `logps` the log-probability of each
    choice. `readings` maps each reading to {"parsed": [one of each reply], "scores": {...}}, with
    "no_answer", the log-probability of there being none, where the task asks for it.
    `tokens` were generated, `cut` of the replies ended for want of room. A prompt `too_long` for
    the model was not asked and scores 0, as does one that a server has `refused`, which says why.
    """

    identity: ClassVar[tuple[str, ...]] = ("task", "number", "prompt", "replies", "logps")

    task: str
    number: int
    place: str
    doc: Mapping[str, Any]
    prompt: str
    target: str
    replies: tuple[str, ...]
    logps: tuple[float, ...]
    readings: Mapping[str, Any]
    cluster: str | None
    prompt_tokens: int
    tokens: int
    cut: int
    too_long: bool
    refused: str


@dataclass(frozen=True)
class Manner:
    """How a model is asked: `repeats` replies a question, `room` tokens for prompt and reply.

    `show` gives the prompt as the model reads it, `count` the tokens of a question with its
    longest choice, and `single` says whether each of its choices is one token, all different.
    `scores`: whether the model is asked for the log-probability of there being no answer.
    """

    sampling: SamplingParams
    repeats: int
    seed: int
    room: int
    show: Callable[[Question], str]
    count: Callable[[Question], int]
    single: Callable[[Question], bool]
    scores: bool = True


def outcomes(
    generator: Generator, benchmark: Benchmark, questions: Iterator[Question], manner: Manner
) -> Iterator[Outcome]:
    """An outcome of every question, as they finish; questions are read as the model needs them."""
    too_long: list[Outcome] = []

    def fitting() -> Iterator[Question]:
        for question in questions:
            if manner.count(question) >= manner.room:
                too_long.append(_unasked(benchmark, question, manner, too_long=True))
            else:
                yield question

    ask = _chosen if isinstance(benchmark.ask, Choose) else _written
    yield from ask(generator, benchmark, fitting(), manner)
    yield from too_long


def _answers(given: Iterable[Any], failed: dict[int, str]) -> Iterator[Any]:
    """The answers; `failed` becomes the reason of each question with a request without one."""
    try:
        yield from given
    except RequestsFailed as error:  # raised when all others are there
        failed |= {int(name.partition("/")[0]): why for name, why in error.failed.items()}


def _refused(
    benchmark: Benchmark, waiting: Mapping[int, Question], failed: Mapping[int, str], manner: Manner
) -> Iterator[Outcome]:
    for number, why in failed.items():
        yield _unasked(benchmark, waiting[number], manner, refused=why)


def _written(generator, benchmark: Benchmark, questions, manner: Manner) -> Iterator[Outcome]:
    if not (benchmark.ask.none and manner.scores):
        yield from _replied(generator, benchmark, questions, manner, {})
        return
    while window := list(islice(questions, WINDOW)):
        doubts = _doubts(generator, benchmark, window)
        yield from _replied(generator, benchmark, window, manner, doubts)


def _doubts(generator, benchmark: Benchmark, questions) -> dict[int, float]:
    """Of each question the log-probability of the reply that there is no answer."""

    def requests() -> Iterator[ScoreRequest]:
        for question in questions:
            prompt, gap = _without_trailing_space(question.prompt)
            gap = gap or (benchmark.delimiter if isinstance(prompt, str) else "")
            yield ScoreRequest(str(question.number), prompt, gap + benchmark.ask.none, end=False)

    scores = generator.score(requests())
    return {int(score.id): round(float(sum(score.logps)), DIGITS) for score in scores}


def _replied(
    generator, benchmark: Benchmark, questions, manner: Manner, doubts: Mapping[int, float]
) -> Iterator[Outcome]:
    waiting: dict[int, Question] = {}
    failed: dict[int, str] = {}
    done: dict[int, dict[int, Completion]] = {}

    def requests() -> Iterator[Request]:
        for question in questions:
            waiting[question.number] = question
            for draw in range(manner.repeats):
                seed = int(content_id(manner.seed, benchmark.name, question.number, draw), 16)
                name = f"{question.number}/{draw}"
                yield Request(
                    name, question.prompt, manner.sampling, seed & 0x7FFFFFFF, question.prefix
                )

    for completion in _answers(generator.generate(requests()), failed):
        number, draw = map(int, completion.id.split("/"))
        replies = done.setdefault(number, {})
        replies[draw] = completion
        if len(replies) == manner.repeats:
            ordered = [completion for _, completion in sorted(done.pop(number).items())]
            doubt = {"no_answer": doubts[number]} if doubts else {}
            yield _read_replies(benchmark, waiting.pop(number), ordered, manner, doubt)
    yield from _refused(benchmark, waiting, failed, manner)


def _read_replies(
    benchmark: Benchmark,
    question: Question,
    replies: list[Completion],
    manner: Manner,
    doubt: Mapping[str, float],
) -> Outcome:
    assert isinstance(benchmark.ask, Generate)
    texts = tuple(completion.text for completion in replies)
    readings = {
        name: _together([read(text, question.row) for text in texts]) | doubt
        for name, read in benchmark.ask.readings.items()
    }
    return _outcome(
        benchmark,
        question,
        manner,
        replies=texts,
        readings=readings,
        prompt_tokens=replies[0].prompt_tokens,
        tokens=sum(len(completion.tokens) for completion in replies),
        cut=sum(completion.finish == "length" for completion in replies),
    )


def _together(readings: list[Reading]) -> dict[str, Any]:
    """One reading of all replies: the mean of each score, and pass@k where there are enough."""
    scores: dict[str, float] = {}
    for metric in {name: None for reading in readings for name in reading.scores}:
        values = [reading.scores[metric] for reading in readings if metric in reading.scores]
        scores[metric] = sum(values) / len(values)
        if metric == "pass@1":
            right = round(sum(values))
            scores |= {
                f"pass@{k}": pass_at_k(len(values), right, k) for k in PASSES if k <= len(values)
            }
    found = {"parsed": [reading.parsed for reading in readings], "scores": scores}
    return found | ({"counts": dict(readings[0].counts)} if readings[0].counts else {})


def _chosen(generator, benchmark: Benchmark, questions, manner: Manner) -> Iterator[Outcome]:
    """Choices of one token are read from one place; longer ones are scored one by one."""
    while window := list(islice(questions, WINDOW)):
        short = [question for question in window if manner.single(question)]
        long = [question for question in window if question not in short]
        yield from _weighed(generator, benchmark, short, manner)
        yield from _scored(generator, benchmark, long, manner)


def _weighed(generator, benchmark: Benchmark, questions, manner: Manner) -> Iterator[Outcome]:
    waiting = {str(question.number): question for question in questions}

    def requests() -> Iterator[LabelRequest]:
        for question in questions:
            prompt, gap = _without_trailing_space(question.prompt)
            labels = tuple(gap + choice for choice in question.choices)
            yield LabelRequest(str(question.number), prompt, labels)

    for labels in generator.labels(requests()) if questions else ():
        logps = tuple(round(float(logp), DIGITS) for logp in labels.logps)
        yield _read_choices(benchmark, waiting.pop(labels.id), logps, manner)


def _scored(generator, benchmark: Benchmark, questions, manner: Manner) -> Iterator[Outcome]:
    waiting: dict[int, Question] = {}
    failed: dict[int, str] = {}
    done: dict[int, dict[int, float]] = {}

    def requests() -> Iterator[ScoreRequest]:
        for question in questions:
            waiting[question.number] = question
            prompt, gap = _without_trailing_space(question.prompt)
            for place, choice in enumerate(question.choices):
                name = f"{question.number}/{place}"
                yield ScoreRequest(name, prompt, gap + choice, end=False)

    for score in _answers(generator.score(requests()) if questions else (), failed):
        number, place = map(int, score.id.split("/"))
        logps = done.setdefault(number, {})
        logps[place] = round(float(sum(score.logps)), DIGITS)
        if len(logps) == len(waiting[number].choices):
            ordered = tuple(value for _, value in sorted(done.pop(number).items()))
            yield _read_choices(benchmark, waiting.pop(number), ordered, manner)
    yield from _refused(benchmark, waiting, failed, manner)


def _without_trailing_space(prompt):
    """A text's trailing space belongs to what follows: tokenizers join it to the next word."""
    if not isinstance(prompt, str):
        return prompt, ""
    kept = prompt.rstrip()
    return kept, prompt[len(kept) :]


def _read_choices(
    benchmark: Benchmark, question: Question, logps: tuple[float, ...], manner: Manner
) -> Outcome:
    assert isinstance(benchmark.ask, Choose)
    choices = benchmark.ask.choices(question.row)
    gold = benchmark.ask.gold(question.row)
    best = _largest(logps)
    by_length = _largest([s / len(c) for s, c in zip(logps, choices, strict=True)])
    scores = {"acc": float(best == gold), "acc_norm": float(by_length == gold)}
    readings = {"none": {"parsed": [choices[best]], "scores": scores}}
    return _outcome(
        benchmark, question, manner, replies=question.choices, logps=logps, readings=readings
    )


def _largest(values) -> int:
    """The first place of the largest value, as the harness breaks ties."""
    return max(range(len(values)), key=values.__getitem__)


def _unasked(
    benchmark: Benchmark,
    question: Question,
    manner: Manner,
    *,
    too_long: bool = False,
    refused: str = "",
) -> Outcome:
    """Wrong by every metric: there is no reply, for one of the two reasons."""
    if isinstance(benchmark.ask, Choose):
        wrong = {"none": Reading(None, {"acc": 0.0, "acc_norm": 0.0})}
    else:
        read = {name: read("", question.row) for name, read in benchmark.ask.readings.items()}
        wrong = {n: Reading(None, dict.fromkeys(r.scores, 0.0), r.counts) for n, r in read.items()}
    readings = {name: _together([reading] * manner.repeats) for name, reading in wrong.items()}
    return _outcome(
        benchmark, question, manner, readings=readings, too_long=too_long, refused=refused
    )


def _outcome(
    benchmark: Benchmark,
    question: Question,
    manner: Manner,
    *,
    readings: Mapping[str, Any],
    replies: tuple[str, ...] = (),
    logps: tuple[float, ...] = (),
    prompt_tokens: int = 0,
    tokens: int = 0,
    cut: int = 0,
    too_long: bool = False,
    refused: str = "",
) -> Outcome:
    return Outcome.make(
        task=benchmark.name,
        number=question.number,
        place=question.place,
        doc=dict(question.row),
        prompt=manner.show(question),
        target=question.target,
        replies=replies,
        logps=logps,
        readings=readings,
        cluster=benchmark.cluster(question.row) if benchmark.cluster else None,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        cut=cut,
        too_long=too_long,
        refused=refused,
    )
