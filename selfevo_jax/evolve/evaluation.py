"""An evaluation outside a run: one stage per task, resumable by item like a run's."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate import asking, bleu, readings, rouge, running
from selfevo_jax.evaluate.asking import Question, Wording, questions
from selfevo_jax.evaluate.benchmark import Benchmark, Generate
from selfevo_jax.evaluate.benchmarks import code
from selfevo_jax.evaluate.data import Rows, read_split
from selfevo_jax.evaluate.results import TaskResult, sample_rows, summarise, task_slug
from selfevo_jax.evaluate.running import Manner, Outcome, outcomes
from selfevo_jax.evaluate.stats import Difference, paired_difference
from selfevo_jax.evaluate.task import check_choice
from selfevo_jax.evaluate.tasks import BENCHMARKS, drawn
from selfevo_jax.evolve import work
from selfevo_jax.evolve.files import disk_full_is_a_message, locked, write_atomic
from selfevo_jax.evolve.journal import compact_json
from selfevo_jax.evolve.keys import source_version
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import Item, Stage, StageFolder, Work, read_records, run_stage
from selfevo_jax.judge import checkers
from selfevo_jax.records import Record
from selfevo_jax.sample.protocol import Generator, SamplingParams

DRAWN = 300  # questions of a task that makes them without end, where no limit is given


class Evaluated(Protocol):
    """What an evaluation needs of a model."""

    name: str
    room: int
    has_template: bool
    scores: bool  # whether it is asked for the log-probability of a text besides a reply

    def settings(self) -> dict[str, Any]:
        """Everything about the model that decides its answers, its content hash included."""
        ...

    def generator(self) -> Generator:
        """The engine; the weights are loaded now."""
        ...

    def show(self, question: Question) -> str:
        """A question as the model reads it."""
        ...

    def count(self, question: Question) -> int:
        """Tokens of a question with its longest choice; 0 where they cannot be counted."""
        ...

    def single(self, question: Question) -> bool:
        """Whether each choice of a question is one token, all different."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """How tasks are asked: `limit` questions each (None: all), `gen` in place of greedy."""

    model: Evaluated
    progress: Progress
    wording: Wording
    limit: int | None = None
    max_new_tokens: int | None = None
    sampling: SamplingParams = SamplingParams(temperature=0.0)
    repeats: int = 1
    data: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A task ready to be asked: everything that can be wrong with it was looked at."""

    benchmark: Benchmark
    rows: Rows
    stage: Stage
    wording: Wording
    manner: Manner
    total: int

    def questions(self, data: str | None) -> Iterator[Question]:
        """The questions that are asked, from the first."""
        return islice(questions(self.benchmark, self.rows, data, self.wording), self.total)


def prepare(evaluation: Evaluation, name: str) -> Prepared:
    """Reads and checks a task's rows and wording; no weights are loaded.

    Raises UserError for missing or bad data, and for code tasks where code cannot be run safely.
    """
    benchmark, rows = _rows(evaluation, name)
    if isinstance(benchmark.ask, Generate) and benchmark.ask.code:
        code.sandbox()
    model = evaluation.model
    chat = model.has_template if benchmark.own else evaluation.wording.chat
    if chat and not model.has_template:
        raise UserError(f"{model.name} has no chat template; leave out --apply_chat_template")
    wording = dataclasses.replace(evaluation.wording, chat=chat)
    limit = len(rows.rows) if evaluation.limit is None else evaluation.limit
    total = min(limit, len(rows.rows))
    sampling = _sampling(evaluation, benchmark)
    manner = Manner(
        sampling, evaluation.repeats, wording.seed, model.room,
        model.show, model.count, model.single, model.scores,
    )  # fmt: skip
    stage = _stage(evaluation, benchmark, rows, wording, manner, total)
    prepared = Prepared(benchmark, rows, stage, wording, manner, total)
    for _ in prepared.questions(evaluation.data):
        pass  # every gold answer parses, every example is there
    return prepared


def _rows(evaluation: Evaluation, name: str) -> tuple[Benchmark, Rows]:
    if name.startswith("rg:"):
        return drawn(name, evaluation.limit or DRAWN, evaluation.wording.seed)
    benchmark = BENCHMARKS[name]
    return benchmark, read_split(name, benchmark.data, benchmark.split, evaluation.data)


def _sampling(evaluation: Evaluation, benchmark: Benchmark) -> SamplingParams:
    if not isinstance(benchmark.ask, Generate):
        return evaluation.sampling
    return dataclasses.replace(
        evaluation.sampling,
        max_new_tokens=evaluation.max_new_tokens or benchmark.ask.max_new_tokens,
        stop=(*benchmark.ask.stop, *evaluation.sampling.stop),
    )


def _stage(
    evaluation: Evaluation,
    benchmark: Benchmark,
    rows: Rows,
    wording: Wording,
    manner: Manner,
    total: int,
) -> Stage:
    modules = {f.__module__ for f in (benchmark.prompt, benchmark.target)}
    parts = [sys.modules[name] for name in sorted(modules)]
    parts += [asking, bleu, readings, rouge, running, checkers]
    settings = {
        "questions": total,
        "wording": dataclasses.asdict(wording),
        "sampling": dataclasses.asdict(manner.sampling),
        "repeats": manner.repeats,
        "model": evaluation.model.settings(),
    }
    version = f"{source_version(*parts)}/{work.SAMPLER_VERSION}"
    return Stage(benchmark.name, version, settings, dict(rows.origin))


def evaluate_task(evaluation: Evaluation, prepared: Prepared, out: Path) -> TaskResult:
    """Asks one task into `out`/NAME, going on with what is there, and sums it up.

    Raises UserError for a folder with another evaluation, or one in use.
    """
    folder = StageFolder(out / task_slug(prepared.benchmark.name))
    with disk_full_is_a_message("Every answer so far is safe."), locked(out):
        status, why = folder.status(prepared.stage)
        if status == "changed":
            raise UserError(f"{folder.path} holds another evaluation ({why}); give another --out")
        if status != "done":
            _ask(evaluation, prepared, folder)
        return summarise(prepared.benchmark.name, read_records(folder, Outcome))


def _ask(evaluation: Evaluation, prepared: Prepared, folder: StageFolder) -> None:
    generator = evaluation.model.generator()
    name, total = prepared.benchmark.name, prepared.total
    with evaluation.progress.stage(name, total, "questions") as bar:
        items = ((str(q.number), q) for q in prepared.questions(evaluation.data))
        run_stage(folder, prepared.stage, items, _work(generator, prepared), bar.advance)


def _work(generator: Generator, prepared: Prepared) -> Work:
    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        waiting: dict[int, Item] = {}

        def asked() -> Iterator[Question]:
            for item in items:
                waiting[item.value.number] = item
                yield item.value

        for outcome in outcomes(generator, prepared.benchmark, asked(), prepared.manner):
            yield waiting.pop(outcome.number), [outcome]

    return work


def write_samples(out: Path, task: str, path: Path) -> None:
    """Writes the per-item rows of a finished task in the harness's shape."""
    folder = StageFolder(out / task_slug(task))
    rows = sample_rows(read_records(folder, Outcome))
    write_atomic(path, "".join(compact_json(row) + "\n" for row in rows).encode())


def compared(before: Path, after: Path, task: str) -> tuple[str, str, Difference]:
    """(task, metric, paired difference) of the first metric on the questions both have answered.

    Raises UserError where one is not finished, or the questions are not the same.
    """
    first, second = (_scores(out, task) for out in (before, after))
    if first.keys() != second.keys() or not first:
        raise UserError(
            f"{task}: {before} and {after} did not answer the same questions (or not by the same "
            "metric); evaluate both with the same --limit, --data and --seed"
        )
    metric = next(iter(first))[2]
    gain = paired_difference(list(first.values()), [second[key] for key in first])
    return task, metric, gain


def summed_up(out: Path, task: str) -> TaskResult:
    """The figures of a finished task. Raises UserError for one that is not finished."""
    return summarise(task, _outcomes(out, task))


def picked(
    out: Path, task: str, which: str, before: Path | None
) -> Iterator[tuple[Outcome, Outcome | None]]:
    """The questions of a finished task that are `which` of PICKS, by the first score.

    With `before`, another evaluation of the same questions, each comes with its outcome there.
    Raises UserError where one is not finished, or "flipped" has nothing to compare with.
    """
    check_choice(which, PICKS, "--show")
    if which == "flipped" and before is None:
        raise UserError("--show=flipped needs --compare=DIR, the evaluation to compare with")
    old = {} if before is None else {o.place: o for o in _outcomes(before, task)}
    for outcome in _outcomes(out, task):
        other = old.get(outcome.place)
        if PICKS[which](outcome, other):
            yield outcome, other


def _right(outcome: Outcome) -> bool:
    scores = next(iter(outcome.readings.values()))["scores"]
    return next(iter(scores.values()), 0.0) == 1.0


def _unparsed(outcome: Outcome, other: Outcome | None) -> bool:
    return None in next(iter(outcome.readings.values()))["parsed"]


PICKS: dict[str, Callable[[Outcome, Outcome | None], bool]] = {
    "all": lambda outcome, other: True,
    "wrong": lambda outcome, other: not _right(outcome),
    "right": lambda outcome, other: _right(outcome),
    "unparsed": _unparsed,
    "flipped": lambda outcome, other: other is not None and _right(outcome) != _right(other),
}


def _outcomes(out: Path, task: str) -> Iterator[Outcome]:
    """The outcomes of a finished task."""
    folder = StageFolder(out / task_slug(task))
    if folder.sealed() is None:
        raise UserError(f"{out} holds no finished {task}; run selfevo eval --tasks={task} there")
    return read_records(folder, Outcome)


def _scores(out: Path, task: str) -> dict[tuple[str, str, str], float]:
    """(target, place, metric) -> score of a finished task's first reading."""
    found = {}
    for outcome in _outcomes(out, task):
        scores = next(iter(outcome.readings.values()))["scores"]
        metric, score = next(iter(scores.items()), ("none", 0.0))
        found[outcome.target, outcome.place, metric] = score
    return found
