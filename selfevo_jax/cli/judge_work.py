"""What `selfevo judge` does: judges opened, things to judge read, verdicts kept and shown."""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from selfevo_jax.cli import judge_tables
from selfevo_jax.cli.common import (
    compute_settings,
    endpoint_of,
    is_remote,
    server_of,
    with_adapter,
)
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.judged import bench_rows, labelled_pairs
from selfevo_jax.evolve.backend import JaxModel
from selfevo_jax.evolve.evaluated import LocalModel
from selfevo_jax.evolve.files import read_json, write_atomic, write_json
from selfevo_jax.evolve.journal import compact_json, finished
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
from selfevo_jax.evolve.stages import JOURNAL, Stage, StageFolder
from selfevo_jax.judge import injection as attacks
from selfevo_jax.judge.aggregate import candidate_scores, count_wins
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.critique import KINDS, Critic, Opinion, critic_prompt
from selfevo_jax.judge.health import Health, Known, agreement_between, health
from selfevo_jax.judge.jury import jury
from selfevo_jax.judge.pairwise import Comparison, Contest, PairwiseJudge, protocol
from selfevo_jax.judge.pointwise import Grades, Marked, PointwiseJudge, rubric
from selfevo_jax.records import content_id
from selfevo_jax.sample.http.client import HttpGenerator, open_server
from selfevo_jax.sample.http.pricing import DryRun, Estimate
from selfevo_jax.text.prompt_files import PromptFile

POINTWISE = "pointwise"
JURY = "jury"
WIDTH = 160


@dataclass(frozen=True)
class Juror:
    """What one --model names."""

    source: str
    adapter: Path | None = None

    @property
    def name(self) -> str:
        """Its name in verdicts and folders, as `selfevo sample` writes it into answer files."""
        return self.source if self.adapter is None else f"{self.source}+{self.adapter}"

    @property
    def aliases(self) -> set[str]:
        """What else its model may be called where somebody wrote down whose an output is."""
        served = self.source.partition("#")[2] if is_remote(self.source) else self.source
        return {self.name, served, full_name(self.source, self.adapter)}


def full_name(source: str, adapter: Path | None) -> str:
    """A model's name that does not depend on the folder one is in."""
    place = Path(source)
    whole = str(place.resolve()) if not is_remote(source) and place.exists() else source
    return whole if adapter is None else f"{whole}+{adapter.resolve()}"


def jurors_of(arguments: argparse.Namespace) -> list[Juror]:
    """The judges of a command. Raises UserError for one that comes twice, or a lone --adapter."""
    found = [Juror(*with_adapter(text)) for text in arguments.model]
    if arguments.adapter:
        (first, *others) = found
        if others or first.adapter or is_remote(first.source):
            raise UserError(
                f"--adapter={arguments.adapter} goes with one --model that is not on a server; of "
                "several, write --model=SOURCE+ADAPTER_DIR"
            )
        found = [Juror(first.source, Path(arguments.adapter))]
    for juror in found:
        if found.count(juror) > 1:
            raise UserError(f"--model={juror.name} is there twice: a jury has different judges")
    return found


@dataclass(frozen=True)
class Opened:
    """A judge ready to be asked; `settings` decide its verdicts. Weights load at `model()`."""

    juror: Juror
    settings: dict[str, Any]
    model: Callable[[], JudgeModel]


@dataclass(frozen=True)
class Asking:
    """Things to be judged: under what label, with which prompt, how, and as what records."""

    label: str
    prompt: PromptFile
    values: Sequence[Any]
    ask: Callable[[JudgeModel], Callable[[Iterator[Any]], Iterator[Any]]]
    kind: type


class Judging:
    """Verdicts of all judges of a command on the same things, each kept in a folder of its own."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress, console: Console) -> None:
        self.arguments, self.progress, self.console = arguments, progress, console
        self.jurors = jurors_of(arguments)
        self._server = server_of(arguments, [juror.source for juror in self.jurors])
        self._local: JaxModel | None = None
        self._clients: dict[Juror, HttpGenerator] = {}

    def _opened(self, juror: Juror) -> Opened:
        verdict = self.arguments.verdict
        if is_remote(juror.source):
            client = self._client(juror)
            settings = {"verdict": verdict, "server": juror.source}
            return Opened(juror, settings, lambda: JudgeModel(juror.name, client, verdict=verdict))
        local = LocalModel(self._base(juror.source), juror.adapter)

        def model() -> JudgeModel:
            tokenizer = local.model.tokenizer
            return JudgeModel(juror.name, local.generator(), tokenizer, local.room, verdict)

        return Opened(juror, local.settings() | {"verdict": verdict}, model)

    def _base(self, source: str) -> JaxModel:
        """A base model, whose weights judges that follow each other share; one at a time."""
        if self._local is None or self._local.source != source:
            self._local = JaxModel(source, compute_settings(self.arguments), self.progress)
        return self._local

    def _client(self, juror: Juror) -> HttpGenerator:
        if juror not in self._clients:
            endpoint, slots = endpoint_of(juror.source), self.arguments.slots
            self._clients[juror] = open_server(endpoint, self._server, self.arguments.out, slots)
        return self._clients[juror]

    def begin(self, askings: Sequence[Asking]) -> bool:
        """Tells what servers will be asked, where the prices are known; whether it is then done.

        In a dry run it is not.
        """
        if not (self.arguments.dry_run or self._server.priced):
            return True
        for juror in self.jurors:
            if is_remote(juror.source):
                price = sum((self._price(juror, asking) for asking in askings), Estimate())
                self.console.print(f"price of {juror.name}: {price}", markup=False)
        return not self.arguments.dry_run

    def _price(self, juror: Juror, asking: Asking) -> Estimate:
        """The most that the verdicts still owed can cost."""
        folder, stage = self._place(self._opened(juror), asking)
        if StageFolder(folder).status(stage)[0] == "done":
            return Estimate()
        done = finished(folder / JOURNAL)
        owed = [value for place, value in enumerate(asking.values) if place not in done]
        dry = DryRun(self._client(juror), answers=True)
        model = JudgeModel(juror.name, dry, verdict=self.arguments.verdict)
        for _ in asking.ask(model)(iter(owed)):
            pass
        return dry.estimate

    def _place(self, judge: Opened, asking: Asking) -> tuple[Path, Stage]:
        name, prompt = judge.juror.name, asking.prompt
        folder = self.arguments.out / f"{asking.label}-{prompt.name}-{content_id(name)[:6]}"
        seen = content_id([dataclasses.asdict(value) for value in asking.values])
        return folder, Stage(
            f"{asking.label} {prompt.name}",
            judging_version(),
            judge.settings | {"margin": self.arguments.margin},
            {"prompt": prompt.hash, "judged": seen},
        )

    def run(self, asking: Asking) -> list[list[Any]]:
        """The records of every judge, in the order of the values."""
        found = []
        for juror in self.jurors:
            judge = self._opened(juror)
            folder, stage = self._place(judge, asking)

            # The weights are loaded only when a verdict is still owed.
            def ask(items: Iterator[Any], judge: Opened = judge) -> Iterator[Any]:
                return asking.ask(judge.model())(items)

            found.append(judge_stage(folder, stage, asking.values, ask, asking.kind, self.progress))
        return found

    def pairs(self, label: str, contests: Sequence[Contest]) -> Asking:
        """Contests to be compared by the protocol of the command."""
        prompt, margin = protocol(self.arguments.protocol), self.arguments.margin

        def ask(model: JudgeModel) -> Callable[[Iterator[Contest]], Iterator[Comparison]]:
            return PairwiseJudge(model, prompt, margin).compare

        return Asking(label, prompt, contests, ask, Comparison)

    def compare(self, asking: Asking) -> list[list[Comparison]]:
        """Comparisons by every judge, and by the jury of all if there are several."""
        found = self.run(asking)
        return [*found, list(jury(found))] if len(found) > 1 else found

    @property
    def names(self) -> list[str]:
        """The judges, the jury last."""
        names = [juror.name for juror in self.jurors]
        return [*names, JURY] if len(names) > 1 else names

    def conduct(
        self, judge: str, found: Sequence[Comparison], known: Mapping[str, Known]
    ) -> Health:
        """The conduct of a judge, or of the jury, which has no model of its own."""
        aliases = {juror.name: juror.aliases for juror in self.jurors}.get(judge, set())

        def named(by: str | None) -> str | None:
            return judge if by in aliases else by

        seen = {
            name: dataclasses.replace(k, first_by=named(k.first_by), second_by=named(k.second_by))
            for name, k in known.items()
        }
        return health(found, seen, judge)


def started(arguments: argparse.Namespace) -> Judging:
    """The judges of a command, and where their tables go."""
    return Judging(arguments, Progress(Console(stderr=True, highlight=False)), output())


def output() -> Console:
    """Where tables go."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH  # tables in files and pipes are not squeezed
    return console


def bench(arguments: argparse.Namespace) -> int:
    """`judge bench`: agreement with people on labelled pairs."""
    judging = started(arguments)
    names = [name.strip() for name in arguments.sets.split(",")]
    sets = {name: labelled_pairs(name, arguments.data, arguments.limit) for name in names}
    references = read_references(arguments.reference_file) if arguments.reference_file else {}
    askings = {
        name: judging.pairs(
            name,
            [
                dataclasses.replace(p.contest, references=references.get(p.contest.id, ()))
                for p in found.pairs
            ],
        )
        for name, found in sets.items()
    }
    if not judging.begin(list(askings.values())):
        return 0
    rows: dict[str, list[Any]] = {}
    for name, asking in askings.items():
        for judge, found in zip(judging.names, judging.compare(asking), strict=True):
            rows.setdefault(judge, []).extend(bench_rows(name, sets[name].pairs, found))
    left_out = {name: found.left_out for name, found in sets.items()}
    judge_tables.print_bench(judging.console, rows, left_out)
    write_json(arguments.out / "bench.json", judge_tables.bench_json(rows))
    return 0


def injection(arguments: argparse.Namespace) -> int:
    """`judge injection`: how often thirty attacks win."""
    judging, made = started(arguments), attacks.attempts()
    asking = judging.pairs(attacks.LABEL, [attempt.contest for attempt in made])
    if not judging.begin([asking]):
        return 0
    known = attacks.known(made)
    for judge, found in zip(judging.names, judging.compare(asking), strict=True):
        won, conduct = attacks.outcome(made, found), judging.conduct(judge, found, known)
        judge_tables.print_injection(judging.console, judge, won, conduct)
    return 0


def candidates_of(arguments: argparse.Namespace) -> list[Candidates]:
    """What --round or the file holds, with references from --reference-file where given."""
    path = Path(arguments.what)
    if not path.exists():
        raise UserError(f"{path} is neither a run, a file, `bench` nor `injection`")
    source = _signed(path, arguments.round) if path.is_dir() else file_candidates(path)
    found = list(islice(source, arguments.limit))
    if arguments.reference_file is None:
        return found
    references = read_references(arguments.reference_file)
    return [
        dataclasses.replace(given, references=references.get(given.id, given.references))
        for given in found
    ]


def _signed(workdir: Path, number: int | None) -> Iterator[Candidates]:
    """The samples of a run's round, each by its model instead of its policy's name there."""
    models = authors(workdir)
    for given in run_candidates(workdir, number):
        outputs = tuple(
            dataclasses.replace(output, by=models.get(output.by or "", output.by))
            for output in given.outputs
        )
        yield dataclasses.replace(given, outputs=outputs)


def authors(workdir: Path) -> dict[str, str]:
    """The `full_name` of the model behind every policy and role of a run."""
    if not (workdir / "run.json").is_file():
        return {}
    run = read_json(workdir / "run.json")
    policies, roles = run.get("policies", {}), run.get("roles", {})
    trained = {
        name: full_name(run["model"], workdir / policy["adapter"] if policy["adapter"] else None)
        for name, policy in policies.items()
    }
    others = {
        name: full_name(role["model"] or run["model"], Path(role["from"]) if role["from"] else None)
        for name, role in roles.items()
    }
    return trained | others


def stored(arguments: argparse.Namespace, candidates: Sequence[Candidates]) -> int:
    """`judge RUN|FILE`: verdicts on stored generations."""
    if arguments.protocol == POINTWISE or arguments.protocol in KINDS:
        return _one_by_one(arguments, candidates)
    judging = started(arguments)
    met = [found for given in candidates for found in given.contests()]
    asking = judging.pairs("pairs", unique(contest for contest, _, _ in met))
    known = {
        c.id: Known(len(c.first), len(c.second), first.by, second.by) for c, first, second in met
    }
    if not judging.begin([asking]):
        return 0
    compared = judging.compare(asking)
    for judge, found in zip(judging.names, compared, strict=True):
        conduct, wins = judging.conduct(judge, found, known), count_wins(found)
        judge_tables.print_stored(
            judging.console, judge, conduct, wins, list(known.values()), found
        )
        _write_scores(arguments.out / f"scores-{content_id(judge)[:6]}.jsonl", candidates, found)
    for one, other in zip(compared, compared[1:], strict=False):
        rate = agreement_between(one, other)
        judging.console.print(f"same verdict: {judge_tables.rate_text(rate)}", markup=False)
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
    judging = started(arguments)
    values = unique(marked for given in candidates for marked in given.marked())
    marking = arguments.protocol == POINTWISE
    asking = _marks(values) if marking else _opinions(arguments.protocol, values)
    if not judging.begin([asking]):
        return 0
    (found,) = judging.run(asking)
    show = judge_tables.print_grades if marking else judge_tables.print_opinions
    show(judging.console, found)
    return 0


def _marks(values: Sequence[Marked]) -> Asking:
    prompt = rubric(all(value.reference is not None for value in values))
    return Asking(
        "marks", prompt, values, lambda model: PointwiseJudge(model, prompt).grade, Grades
    )


def _opinions(kind: str, values: Sequence[Marked]) -> Asking:
    prompt = critic_prompt(kind)
    return Asking("opinions", prompt, values, lambda model: Critic(model, prompt).review, Opinion)
