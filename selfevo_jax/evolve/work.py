"""What the stages of a run do, one function per stage, without files: records in, records out."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.task import Task, letters_shown
from selfevo_jax.evolve.acquire import statistics
from selfevo_jax.evolve.keys import source_version
from selfevo_jax.evolve.stages import Item, Work
from selfevo_jax.judge import checkers
from selfevo_jax.judge.pairwise import Contest, PairwiseJudge
from selfevo_jax.records import Answer, Prompt, Record, Row, Sample, Vector, Verdict, content_id
from selfevo_jax.sample.protocol import (
    Completion,
    Generator,
    LabelRequest,
    Request,
    SamplingParams,
    ScoreRequest,
)

# Raised by hand when a change of the sampler changes the text it gives for the same seed.
SAMPLER_VERSION = "1"
EMBEDDER_VERSION = "1"
SCORER_VERSION = "1"
LEAD = "Answer: ("  # of a letter that is weighed, not written
LOGP_DIGITS = 4  # kept of a log-probability; the rest differs with how requests were batched
VECTOR_DIGITS = 4


def task_version(task: Task) -> str:
    """The code that makes and marks a task's questions."""
    modules = {inspect.getmodule(type(each)): None for each in (task, *task.sources())}
    return source_version(*modules, checkers)


def each(function: Callable[[Any], Sequence[Record]]) -> Work:
    """Work that maps one item at a time."""

    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        for item in items:
            yield item, list(function(item.value))

    return work


def generated(
    generator: Generator,
    request: Callable[[Item], Request],
    record: Callable[[Item, Completion], Record],
) -> Work:
    """Work that asks a generator; items finish in whatever order their completions do."""

    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        waiting: dict[str, Item] = {}

        def requests() -> Iterator[Request]:
            for item in items:
                waiting[item.id] = item
                yield request(item)

        for completion in generator.generate(requests()):
            item = waiting.pop(completion.id)
            yield item, [record(item, completion)]

    return work


def draws(rows: Iterable[tuple[str, Any]], n: int) -> Iterator[tuple[str, tuple[str, Any, int]]]:
    """Each row `n` times: (id of the draw, (id of the row, row, number of the draw))."""
    for name, row in rows:
        for number in range(n):
            yield f"{name}/{number}", (name, row, number)


def draw_seed(seed: int, name: str, number: int) -> int:
    """A 31-bit seed that depends on the run's seed, the row's id and the draw only."""
    return int(content_id("draw", seed, name, number), 16) & 0x7FFFFFFF


def asked(
    generator: Generator,
    policy: str,
    seed: int,
    sampling: SamplingParams,
    messages: Callable[[Any], Sequence[Mapping[str, str]]],
    prefix: str = "",
) -> Work:
    """(id, row, draw) -> Sample: what the policy says when asked `messages(row)`."""

    def request(item: Item) -> Request:
        name, row, number = item.value
        return Request(
            item.id, messages(row), sampling, draw_seed(seed, name, number), prefix=prefix
        )

    def record(item: Item, completion: Completion) -> Sample:
        name, row, number = item.value
        return Sample.make(
            prompt_id=root(row),
            parent_id=first(row).id,
            text=completion.text,
            tokens=tuple(completion.tokens),
            logps=tuple(round(float(logp), LOGP_DIGITS) for logp in completion.logps),
            finish=completion.finish,
            seed=draw_seed(seed, name, number),
            policy=policy,
        )

    return generated(generator, request, record)


def first(row: Any) -> Record:
    """The record that a row is about: its first, of a group that of its first row."""
    while isinstance(row, tuple | list):
        row = row[0]
    return row


def root(row: Any) -> str:
    """The id of the prompt that a row's first record goes back to."""
    record = first(row)
    return record.id if isinstance(record, Prompt) else record.prompt_id


def answered(generator: Generator, policy: str, task: Task, sampling: SamplingParams) -> Work:
    """Held-out prompt -> Answer, marked by the task."""

    def request(item: Item) -> Request:
        return Request(item.id, item.value.messages, sampling)

    def record(item: Item, completion: Completion) -> Answer:
        return mark(task, policy, item.value, completion.text, len(completion.tokens))

    return generated(generator, request, record)


def lettered(generator: Generator, policy: str, task: Task, begin: str) -> Work:
    """Held-out multiple choice -> Answer: the letter that is likeliest after `begin` and LEAD."""

    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        waiting: dict[str, tuple[Item, tuple[str, ...]]] = {}

        def requests() -> Iterator[LabelRequest]:
            for item in items:
                letters = letters_shown(item.value)
                if not letters:
                    raise UserError(
                        f"{task.name}: prompt {item.id} shows no options with letters to weigh; "
                        "take a task of multiple choice, or --config.weigh_letters=false"
                    )
                waiting[item.id] = item, letters
                yield LabelRequest(item.id, item.value.messages, letters, begin + LEAD)

        for labels in generator.labels(requests()):
            item, letters = waiting.pop(labels.id)
            best = max(range(len(letters)), key=labels.logps.__getitem__)
            yield item, [mark(task, policy, item.value, f"Answer: ({letters[best]})", 0)]

    return work


def mark(task: Task, policy: str, prompt: Prompt, text: str, tokens: int) -> Answer:
    """A reply to a held-out prompt, marked by the task."""
    check = task.check(prompt, text)
    return Answer.make(
        prompt_id=prompt.id,
        task=prompt.task,
        policy=policy,
        text=text,
        parsed=check.parsed,
        gold=prompt.answer,
        score=check.score,
        correct=check.correct,
        tokens=tokens,
    )


def checked(task: Task) -> Work:
    """(sample, ..., prompt) -> Verdict, by the task's own checker."""

    def verdict(row: tuple) -> list[Record]:
        sample, prompt = row[0], row[-1]
        check = task.check(prompt, sample.text)
        return [
            Verdict.make(
                sample_id=sample.id, score=check.score, correct=check.correct, parsed=check.parsed
            )
        ]

    return each(verdict)


def judged(judge: PairwiseJudge, contest: Callable[[Any], Contest]) -> Work:
    """Row -> Comparison of two outputs; contests are called by the ids of their rows."""

    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        waiting: dict[str, Item] = {}

        def contests() -> Iterator[Contest]:
            for item in items:
                waiting[item.id] = item
                yield replace(contest(item.value), id=item.id)

        for comparison in judge.compare(contests()):
            yield waiting.pop(comparison.item_id), [comparison]

    return work


def scored(generator: Generator) -> Work:
    """(reply, prompt) -> Row of the reply's summed log-probability and its tokens."""

    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        waiting: dict[str, Item] = {}

        def requests() -> Iterator[ScoreRequest]:
            for item in items:
                sample, prompt = item.value
                waiting[item.id] = item
                whole = sample.finish == "stop" or not sample.text
                yield ScoreRequest(item.id, prompt.messages, sample.text, end=whole)

        for score in generator.score(requests()):
            item = waiting.pop(score.id)
            logp = round(sum(map(float, score.logps)), LOGP_DIGITS)
            values = {"logp": logp, "tokens": len(score.tokens)}
            yield item, [Row.make(source_id=first(item.value).id, values=values)]

    return work


def weighed(
    weigh: Callable[[list[tuple[Sample, Prompt]]], list[Mapping[str, Any]]],
) -> Work:
    """A chunk of (sample, prompt) -> a Row of statistics each; done as a whole, as `embedded`."""

    def rows(chunk: list[tuple[Sample, Prompt]]) -> list[Record]:
        return [
            Row.make(
                source_id=sample.id,
                values={k: round(v, VECTOR_DIGITS) for k, v in statistics(tokens).items()},
            )
            for (sample, _), tokens in zip(chunk, weigh(chunk), strict=True)
        ]

    return each(rows)


def embedded(embed: Callable[[list[str]], Any], policy: str) -> Work:
    """A chunk of (id, text) -> their Vectors. A chunk is done as a whole, so that what stands
    beside a text does not depend on when the run was killed."""

    def vectors(chunk: list[tuple[str, str]]) -> list[Record]:
        values = embed([text for _, text in chunk])
        return [
            Vector.make(
                source_id=name,
                policy=policy,
                values=tuple(round(float(x), VECTOR_DIGITS) for x in vector),
            )
            for (name, _), vector in zip(chunk, values, strict=True)
        ]

    return each(vectors)
