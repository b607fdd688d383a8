"""An evaluation outside a run: one stage per task, resumable by item like a run's."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.asking import Pool, Question, Wording, pool_of, questions
from selfevo_jax.evaluate.benchmark import Benchmark, Generate
from selfevo_jax.evaluate.benchmarks import code
from selfevo_jax.evaluate.data import Rows, is_one_file, read_split
from selfevo_jax.evaluate.results import Asked, TaskResult, sample_rows, summarise, task_slug
from selfevo_jax.evaluate.running import Manner, Outcome, outcomes
from selfevo_jax.evaluate.stats import Difference, paired_difference
from selfevo_jax.evaluate.task import check_choice
from selfevo_jax.evaluate.tasks import BENCHMARKS, drawn
from selfevo_jax.evolve import work
from selfevo_jax.evolve.files import disk_full_is_a_message, locked, write_atomic
from selfevo_jax.evolve.journal import compact_json
from selfevo_jax.evolve.keys import package_version
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import Item, Stage, StageFolder, Work, read_records, run_stage
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
    """How tasks are asked: `limit` questions each (None: all; below 1, that share of them)."""

    model: Evaluated
    progress: Progress
    wording: Wording
    limit: float | None = None
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
    pool: Pool

    def asked(self, where: str | None) -> Asked:
        """What results say of it; `where` its rows are from."""
        wanted, divide = self.wording.num_fewshot, self.benchmark.data.divide
        divided = divide is not None and not is_one_file(where)
        return Asked(
            self.benchmark, len(self.rows.rows), self.stage.inputs,
            self.benchmark.num_fewshot if wanted is None else wanted,
            self.manner.sampling, self.manner.repeats, divided,
        )  # fmt: skip

    def questions(self) -> Iterator[Question]:
        """The questions that are asked, from the first."""
        return islice(questions(self.benchmark, self.rows, self.pool, self.wording), self.total)


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
    total = limited(evaluation.limit, len(rows.rows))
    sampling = _sampling(evaluation, benchmark)
    manner = Manner(
        sampling, evaluation.repeats, wording.seed, model.room,
        model.show, model.count, model.single, model.scores,
    )  # fmt: skip
    pool = pool_of(benchmark, evaluation.data, wording)
    origin = {**rows.origin, **{f"examples {name}": sha for name, sha in pool.origin.items()}}
    stage = _stage(evaluation, benchmark, origin, wording, manner, total)
    prepared = Prepared(benchmark, rows, stage, wording, manner, total, pool)
    for _ in prepared.questions():
        pass  # every gold answer parses, every example is there
    return prepared


def limited(limit: float | None, rows: int) -> int:
    """The number of questions, a share of them rounded up as the harness does it."""
    if limit is None:
        return rows
    return math.ceil(rows * limit) if limit < 1 else min(int(limit), rows)


def _rows(evaluation: Evaluation, name: str) -> tuple[Benchmark, Rows]:
    if name.startswith("rg:"):
        limit = evaluation.limit
        n = int(limit) if limit is not None and limit >= 1 else DRAWN
        return drawn(name, n, evaluation.wording.seed)
    benchmark = BENCHMARKS[name]
    return benchmark, read_split(name, benchmark.data, benchmark.split, evaluation.data)


def _sampling(evaluation: Evaluation, benchmark: Benchmark) -> SamplingParams:
    if not isinstance(benchmark.ask, Generate):
        return evaluation.sampling
    return dataclasses.replace(
        evaluation.sampling,
        max_new_tokens=evaluation.max_new_tokens or benchmark.ask.max_new_tokens,
        stop=evaluation.sampling.stop or benchmark.ask.stop,
    )


def _stage(
    evaluation: Evaluation,
    benchmark: Benchmark,
    origin: Mapping[str, str],
    wording: Wording,
    manner: Manner,
    total: int,
) -> Stage:
    settings = {
        "questions": total,
        "wording": dataclasses.asdict(wording),
        "sampling": dataclasses.asdict(manner.sampling),
        "repeats": manner.repeats,
        "model": evaluation.model.settings(),
    }
    version = f"{package_version('evaluate', 'judge')}/{work.SAMPLER_VERSION}"
    return Stage(benchmark.name, version, settings, origin)


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
        items = ((str(q.number), q) for q in prepared.questions())
        run_stage(folder, prepared.stage, items, _work(generator, prepared), bar.advance)


def _work(generator: Generator, prepared: Prepared) -> Work:
    """Raises UserError where a server refuses every question: nothing is wrong with them then."""

    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        waiting: dict[int, Item] = {}
        refused: list[Outcome] = []

        def asked() -> Iterator[Question]:
            for item in items:
                waiting[item.value.number] = item
                yield item.value

        for outcome in outcomes(generator, prepared.benchmark, asked(), prepared.manner):
            if outcome.refused:
                refused.append(outcome)
            else:
                yield waiting.pop(outcome.number), [outcome]
        if len(refused) == prepared.total:
            raise UserError(
                f"{prepared.benchmark.name}: every question was refused, the first by "
                f"{refused[0].refused}; leave the task out, or mend this and run again"
            )
        for outcome in refused:
            yield waiting.pop(outcome.number), [outcome]

    return work


def write_samples(out: Path, task: str, path: Path) -> None:
    """Writes the per-item rows of a finished task in the harness's shape."""
    folder = StageFolder(out / task_slug(task))
    rows = sample_rows(read_records(folder, Outcome))
    write_atomic(path, "".join(compact_json(row) + "\n" for row in rows).encode())


def compared(before: Path, after: Path, task: str) -> tuple[str, str, Difference]:
    """(task, metric, paired difference) of the first metric on the questions both have answered.

    A question that one of them could not judge (a program that was not run) is left out. Raises
    UserError where one is not finished, or the questions are not the same.
    """
    first, second = (
        {(o.target, o.place): o for o in _outcomes(out, task)} for out in (before, after)
    )
    if first.keys() != second.keys():
        raise UserError(
            f"{task}: {before} and {after} did not answer the same questions; evaluate both with "
            "the same --limit, --data and --seed"
        )
    metric = next((name for outcome in first.values() for name in _first_scores(outcome)), "")
    one, other = (
        {key: scores[metric] for key, o in side.items() if metric in (scores := _first_scores(o))}
        for side in (first, second)
    )
    both = [key for key in one if key in other]
    if not both:
        raise UserError(f"{task}: {before} and {after} judged no question by the same metric")
    names = [first[key].cluster for key in both]
    clusters = None if None in names else names
    gain = paired_difference([one[k] for k in both], [other[k] for k in both], clusters=clusters)
    return task, metric, gain


def _first_scores(outcome: Outcome) -> Mapping[str, float]:
    """The scores of the reading to look at: none where it could not be judged."""
    return next(iter(outcome.readings.values()))["scores"]


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
    return next(iter(_first_scores(outcome).values()), 0.0) == 1.0


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
