"""What the stages of a run do, one function per stage, without files: records in, records out."""

import ast
import hashlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from selfevo_jax.evaluate.file_task import FileTask
from selfevo_jax.evaluate.task import Task
from selfevo_jax.evolve.files import file_sha256
from selfevo_jax.evolve.stages import Item, Work
from selfevo_jax.judge import checkers
from selfevo_jax.records import Answer, Pair, Prompt, Record, Sample, Verdict, content_id
from selfevo_jax.sample.protocol import Completion, Generator, Request, SamplingParams

# Raised by hand when a change of the sampler changes the text it gives for the same seed.
SAMPLER_VERSION = "1"
LOGP_DIGITS = 4  # kept of a log-probability; the rest differs with how requests were batched


def source_version(*parts: Any) -> str:
    """A hash of the code of functions, classes or modules, blind to comments and layout."""
    digest = hashlib.sha256()
    for part in parts:
        tree = ast.parse(inspect.cleandoc(inspect.getsource(part)))
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


def task_version(task: Task) -> str:
    """The code that makes and marks a task's questions."""
    return source_version(inspect.getmodule(type(task)), checkers)


def task_inputs(task: Task) -> dict[str, str]:
    """Content hashes of what a task's questions come from: its files, or the library's version."""
    if isinstance(task, FileTask):
        names = sorted(set(task.spec.files.values()))
        return {name: file_sha256(task.folder / name) for name in names}
    return {"reasoning-gym": importlib.metadata.version("reasoning-gym")}


def each(function: Callable[[Any], list[Record]]) -> Work:
    """Work that maps one item at a time."""

    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        for item in items:
            yield item, function(item.value)

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


def draws(prompts: Iterable[Prompt], n: int) -> Iterator[tuple[str, tuple[Prompt, int]]]:
    """Each prompt `n` times: (id, (prompt, number of the draw))."""
    for prompt in prompts:
        for number in range(n):
            yield f"{prompt.id}/{number}", (prompt, number)


def draw_seed(seed: int, prompt_id: str, number: int) -> int:
    """A 31-bit seed that depends on the run's seed, the prompt and the draw only."""
    return int(content_id("draw", seed, prompt_id, number), 16) & 0x7FFFFFFF


def sampled(generator: Generator, policy: str, seed: int, sampling: SamplingParams) -> Work:
    """(prompt, draw) -> Sample."""

    def request(item: Item) -> Request:
        prompt, number = item.value
        return Request(item.id, prompt.messages, sampling, draw_seed(seed, prompt.id, number))

    def record(item: Item, completion: Completion) -> Sample:
        prompt, number = item.value
        return Sample.make(
            prompt_id=prompt.id,
            text=completion.text,
            tokens=tuple(completion.tokens),
            logps=tuple(round(float(logp), LOGP_DIGITS) for logp in completion.logps),
            finish=completion.finish,
            seed=draw_seed(seed, prompt.id, number),
            policy=policy,
        )

    return generated(generator, request, record)


def answered(generator: Generator, policy: str, task: Task, sampling: SamplingParams) -> Work:
    """Held-out prompt -> Answer, marked by the task."""

    def request(item: Item) -> Request:
        return Request(item.id, item.value.messages, sampling)

    def record(item: Item, completion: Completion) -> Answer:
        prompt: Prompt = item.value
        check = task.check(prompt, completion.text)
        return Answer.make(
            prompt_id=prompt.id,
            task=prompt.task,
            policy=policy,
            text=completion.text,
            parsed=check.parsed,
            gold=prompt.answer,
            score=check.score,
            correct=check.correct,
            tokens=len(completion.tokens),
        )

    return generated(generator, request, record)


def checked(task: Task) -> Work:
    """(sample, prompt) -> Verdict, by the task's own checker."""

    def verdict(value: tuple[Sample, Prompt]) -> list[Record]:
        sample, prompt = value
        check = task.check(prompt, sample.text)
        return [
            Verdict.make(
                sample_id=sample.id, score=check.score, correct=check.correct, parsed=check.parsed
            )
        ]

    return each(verdict)


def right_against_wrong(
    prompt: Prompt, judged: Iterable[tuple[Sample, Verdict]], limit: int
) -> list[Record]:
    """At most `limit` pairs of a right and a wrong sample of one prompt.

    Equal texts count once. Every text is used before any is used again; the order is that of the
    samples, so the same samples give the same pairs.
    """
    right, wrong = {}, {}
    for sample, verdict in judged:
        (right if verdict.correct else wrong).setdefault(sample.text, sample)
    good, bad = list(right.values()), list(wrong.values())
    number = min(limit, max(len(good), len(bad))) if good and bad else 0
    return [_pair(prompt, good[i % len(good)], bad[i % len(bad)]) for i in range(number)]


def _pair(prompt: Prompt, chosen: Sample, rejected: Sample) -> Pair:
    return Pair.make(
        prompt_id=prompt.id,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        prompt=prompt.messages,
        chosen=chosen.text,
        rejected=rejected.text,
    )
