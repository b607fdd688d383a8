"""What `selfevo judge` does: judges opened, things to judge read, verdicts kept and shown."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from selfevo_jax.cli import judge_tables
from selfevo_jax.cli.common import compute_settings
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.judged import bench_rows, labelled_pairs
from selfevo_jax.evolve.backend import JaxModel
from selfevo_jax.evolve.evaluated import LocalModel
from selfevo_jax.evolve.files import write_atomic, write_json
from selfevo_jax.evolve.journal import compact_json
from selfevo_jax.evolve.judging import (
    Candidates,
    file_candidates,
    judge_stage,
    judging_version,
    read_references,
    run_candidates,
    unique,
)
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import Stage
from selfevo_jax.judge import injection as attacks
from selfevo_jax.judge.aggregate import candidate_scores, count_wins
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.critique import KINDS, Critic, Opinion, critic_prompt
from selfevo_jax.judge.health import Known, agreement_between, health
from selfevo_jax.judge.jury import jury
from selfevo_jax.judge.pairwise import Comparison, PairwiseJudge, protocol
from selfevo_jax.judge.pointwise import Grades, PointwiseJudge, rubric
from selfevo_jax.records import content_id
from selfevo_jax.text.prompt_files import PromptFile

KEY = "SELFEVO_API_KEY"  # environment variable with the key of a server, if it wants one
POINTWISE = "pointwise"
WIDTH = 160


@dataclasses.dataclass(frozen=True)
class Opened:
    """A judge ready to be asked; `settings` decide its verdicts. Weights load at `model()`."""

    name: str
    settings: dict[str, Any]
    model: Callable[[], JudgeModel]


def opened(arguments: argparse.Namespace, source: str, progress: Progress) -> Opened:
    """The judge behind one --model."""
    own = {"verdict": arguments.verdict}
    if source.startswith(("http://", "https://")):
        return _remote(arguments, source, own)
    local = LocalModel(
        JaxModel(source, compute_settings(arguments), progress),
        Path(arguments.adapter) if arguments.adapter else None,
    )

    def model() -> JudgeModel:
        return JudgeModel(
            source,
            local.generator(),
            local.model.tokenizer,
            local.room,
            arguments.verdict,
        )

    return Opened(source, local.settings() | own, model)


def _remote(arguments: argparse.Namespace, source: str, own: dict[str, Any]) -> Opened:
    from selfevo_jax.sample.http.calls import Limits
    from selfevo_jax.sample.http.client import HttpGenerator
    from selfevo_jax.sample.http.endpoint import Endpoint
    from selfevo_jax.sample.http.secret import secret_from_environment

    url, _, name = source.partition("#")
    if not name or arguments.adapter:
        raise UserError("a server's model is --model=http://HOST/v1#NAME, without --adapter")
    key = secret_from_environment(KEY) if os.environ.get(KEY) else None
    endpoint = Endpoint(url, name, key=key)
    generator = HttpGenerator(endpoint, limits=Limits(concurrency=arguments.slots))
    return Opened(
        source, own | {"server": source}, lambda: JudgeModel(
            source, generator, verdict=arguments.verdict
        )
    )  # fmt: skip


@dataclasses.dataclass
class Judging:
    """Verdicts of all judges of a command on the same things, each kept in a folder of its own."""

    arguments: argparse.Namespace
    progress: Progress

    def run(
        self,
        label: str,
        prompt: PromptFile,
        values: Sequence[Any],
        ask: Callable[[JudgeModel], Callable[[Iterator[Any]], Iterator[Any]]],
        kind: type,
    ) -> list[list[Any]]:
        """The records of every judge, in the order of `values`."""
        seen = content_id([dataclasses.asdict(value) for value in values])
        found = []
        for source in self.arguments.model:
            judge = opened(self.arguments, source, self.progress)
            stage = Stage(
                f"{label} {prompt.name}",
                judging_version(),
                judge.settings | {"margin": self.arguments.margin},
                {"prompt": prompt.hash, "judged": seen},
            )
            folder = self.arguments.out / f"{label}-{prompt.name}-{content_id(source)[:6]}"
            # The weights are loaded only when a verdict is still owed.
            found.append(
                judge_stage(
                    folder, stage, values,
                    lambda items, judge=judge: ask(judge.model())(items), kind, self.progress,
                )
            )  # fmt: skip
        return found

    def compare(self, label: str, contests: Sequence[Any]) -> list[list[Comparison]]:
        """Comparisons by every judge, and by the jury of all if there are several."""
        prompt = protocol(self.arguments.protocol)
        margin = self.arguments.margin
        found = self.run(
            label,
            prompt,
            contests,
            lambda model: PairwiseJudge(model, prompt, margin).compare,
            Comparison,
        )
        return [*found, list(jury(found))] if len(found) > 1 else found

    @property
    def names(self) -> list[str]:
        """The judges, the jury last."""
        models = self.arguments.model
        return [*models, "jury"] if len(models) > 1 else models


def started(arguments: argparse.Namespace) -> tuple[Judging, Console]:
    """The judges of a command, and where their tables go."""
    progress = Progress(Console(stderr=True, highlight=False))
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH  # tables in files and pipes are not squeezed
    return Judging(arguments, progress), console


def bench(arguments: argparse.Namespace) -> int:
    """`judge bench`: agreement with people on labelled pairs."""
    judging, console = started(arguments)
    names = [name.strip() for name in arguments.sets.split(",")]
    sets = {name: labelled_pairs(name, arguments.data, arguments.limit) for name in names}
    references = read_references(arguments.reference_file) if arguments.reference_file else {}
    rows: dict[str, list[Any]] = {}
    for name in sets:
        contests = [
            dataclasses.replace(p.contest, references=references.get(p.contest.id, ()))
            for p in sets[name].pairs
        ]
        for judge, found in zip(judging.names, judging.compare(name, contests), strict=True):
            rows.setdefault(judge, []).extend(bench_rows(name, sets[name].pairs, found))
    judge_tables.print_bench(console, rows, {name: found.left_out for name, found in sets.items()})
    write_json(arguments.out / "bench.json", judge_tables.bench_json(rows))
    return 0


def injection(arguments: argparse.Namespace) -> int:
    """`judge injection`: how often thirty attacks win."""
    judging, console = started(arguments)
    made = attacks.attempts()
    compared = judging.compare(attacks.LABEL, [attempt.contest for attempt in made])
    for judge, found in zip(judging.names, compared, strict=True):
        judge_tables.print_injection(console, judge, attacks.outcome(made, found))
    return 0


def candidates_of(arguments: argparse.Namespace) -> list[Candidates]:
    """What --round or the file holds, with references from --reference-file where given."""
    path = Path(arguments.what)
    if not path.exists():
        raise UserError(f"{path} is neither a run, a file, `bench` nor `injection`")
    source = run_candidates(path, arguments.round) if path.is_dir() else file_candidates(path)
    found = list(islice(source, arguments.limit))
    if arguments.reference_file is None:
        return found
    references = read_references(arguments.reference_file)
    return [
        dataclasses.replace(given, references=references.get(given.id, given.references))
        for given in found
    ]


def stored(arguments: argparse.Namespace, candidates: Sequence[Candidates]) -> int:
    """`judge RUN|FILE`: verdicts on stored generations."""
    if arguments.protocol == POINTWISE or arguments.protocol in KINDS:
        return _one_by_one(arguments, candidates)
    judging, console = started(arguments)
    met = [found for given in candidates for found in given.contests()]
    contests = unique(contest for contest, _, _ in met)
    known = {
        c.id: Known(len(c.first), len(c.second), first.by, second.by) for c, first, second in met
    }
    compared = judging.compare("pairs", contests)
    for judge, found in zip(judging.names, compared, strict=True):
        conduct, wins = health(found, known, judge), count_wins(found)
        judge_tables.print_stored(console, judge, conduct, wins, list(known.values()), found)
        _write_scores(arguments.out / f"scores-{content_id(judge)[:6]}.jsonl", candidates, found)
    for one, other in zip(compared, compared[1:], strict=False):
        rate = agreement_between(one, other)
        console.print(f"same verdict: {judge_tables.rate_text(rate)}", markup=False)
    return 0


def _write_scores(path: Path, candidates: Sequence[Candidates], found: Sequence[Any]) -> None:
    """One row an output: how probable it is to be better than its siblings."""
    by_id = {comparison.item_id: comparison for comparison in found}
    lines = []
    for given in candidates:
        compared = [
            (first.id, second.id, by_id[contest.id]) for contest, first, second in given.contests()
        ]
        scores = candidate_scores([output.id for output in given.outputs], compared)
        for output in given.outputs:
            row = {"prompt_id": given.id, "output_id": output.id, "score": scores.get(output.id)}
            lines.append(compact_json(row) + "\n")
    write_atomic(path, "".join(lines).encode())


def _one_by_one(arguments: argparse.Namespace, candidates: Sequence[Candidates]) -> int:
    if len(arguments.model) > 1:
        raise UserError("only one --model can mark outputs; a jury compares pairs")
    judging, console = started(arguments)
    values = unique(marked for given in candidates for marked in given.marked())
    if arguments.protocol == POINTWISE:
        referenced = all(value.reference is not None for value in values)
        prompt = rubric(referenced)
        (found,) = judging.run(
            "marks", prompt, values, lambda model: PointwiseJudge(model, prompt).grade, Grades
        )
        judge_tables.print_grades(console, found)
        return 0
    prompt = critic_prompt(arguments.protocol)
    (found,) = judging.run(
        "opinions", prompt, values, lambda model: Critic(model, prompt).review, Opinion
    )
    judge_tables.print_opinions(console, found)
    return 0
