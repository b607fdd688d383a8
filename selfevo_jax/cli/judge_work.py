"""What `selfevo judge` does: judges opened, things to judge read, verdicts kept and shown."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from selfevo_jax.cli import judge_tables
from selfevo_jax.cli.common import (
    compute_settings,
    endpoint_of,
    is_remote,
    server_of,
    with_adapter,
)
from selfevo_jax.cli.judge_inputs import ALONE, POINTWISE, full_name
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.judged import bench_rows, labelled_pairs
from selfevo_jax.evolve.evaluated import LocalModel
from selfevo_jax.evolve.files import write_atomic, write_json
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.journal import compact_json, finished
from selfevo_jax.evolve.judging import (
    Candidates,
    Output,
    judge_stage,
    judging_version,
    read_references,
    unique,
)
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import JOURNAL, Stage, StageFolder
from selfevo_jax.judge import injection as attacks
from selfevo_jax.judge.aggregate import candidate_scores, count_wins
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.critique import Critic, Opinion, critic_prompt
from selfevo_jax.judge.health import Health, Known, Mark, agreement_between, health, leaning
from selfevo_jax.judge.jury import jury
from selfevo_jax.judge.pairwise import Comparison, Contest, PairwiseJudge, protocol
from selfevo_jax.judge.pointwise import Grades, Marked, PointwiseJudge, rubric
from selfevo_jax.records import content_id
from selfevo_jax.sample.http.client import HttpGenerator, open_server
from selfevo_jax.sample.http.pricing import DryRun, Estimate

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


class Wording(Protocol):
    """A prompt, or a set of them: its name, and the hash that verdicts made with it carry."""

    @property
    def name(self) -> str: ...

    @property
    def hash(self) -> str: ...


@dataclass(frozen=True)
class Asking:
    """Things to be judged: under what label, with which prompt, how, and as what records."""

    label: str
    prompt: Wording
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


def slug(name: str) -> str:
    """A model's name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


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


def stored(arguments: argparse.Namespace, candidates: Sequence[Candidates]) -> int:
    """`judge RUN|FILE`: verdicts on stored generations."""
    if arguments.protocol in ALONE:
        return _one_by_one(arguments, candidates)
    judging = started(arguments)
    met = [(*found, given.label) for given in candidates for found in given.contests()]
    asking = judging.pairs("pairs", unique(contest for contest, *_ in met))
    known = {
        c.id: Known(len(c.first), len(c.second), first.by, second.by, label)
        for c, first, second, label in met
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
    _tell_agreement(judging, compared)
    return 0


def _tell_agreement(judging: Judging, compared: Sequence[Sequence[Comparison]]) -> None:
    """How often any two judges say the same; the jury, which is all of them, is left out."""
    judges = zip([juror.name for juror in judging.jurors], compared, strict=False)
    for (name, one), (other, others) in combinations(judges, 2):
        rate = judge_tables.rate_text(agreement_between(one, others))
        judging.console.print(f"{name} and {other}: same verdict {rate}", markup=False)


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
    asked = [pair for c in candidates for pair in zip(c.marked(), c.outputs, strict=True)]
    values = unique(marked for marked, _ in asked)
    marking = arguments.protocol == POINTWISE
    asking = _marks(values) if marking else _opinions(arguments.protocol, values)
    if not judging.begin([asking]):
        return 0
    (found,) = judging.run(asking)
    show = judge_tables.print_grades if marking else judge_tables.print_opinions
    show(judging.console, found)
    given = {record.item_id: record.mean if marking else record.p_right for record in found}
    marks = _signed_marks(judging.jurors[0], asked, given)
    judge_tables.print_leaning(judging.console, leaning(marks))
    return 0


def _signed_marks(
    judge: Juror,
    asked: Iterable[tuple[Marked, Output]],
    given: Mapping[str, float | None],
) -> Iterator[Mark]:
    """The marks that there are, with what is known of their outputs."""
    for marked, output in asked:
        if (mark := given[marked.id]) is not None:
            own = None if output.by is None else output.by in judge.aliases
            yield Mark(mark, len(output.text), own)


def _marks(values: Sequence[Marked]) -> Asking:
    prompt = rubric(all(value.reference is not None for value in values))
    return Asking(
        "marks", prompt, values, lambda model: PointwiseJudge(model, prompt).grade, Grades
    )


def _opinions(kind: str, values: Sequence[Marked]) -> Asking:
    prompt = critic_prompt(kind)
    return Asking("opinions", prompt, values, lambda model: Critic(model, prompt).review, Opinion)
