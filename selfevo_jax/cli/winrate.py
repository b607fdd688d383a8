"""`selfevo judge winrate`: answers against a baseline's, in the files of AlpacaEval or Arena-Hard.

Which of the two is told by the baseline's rows. AlpacaEval: annotations_MODEL.json with the judge's
probability as the preference, and leaderboard.csv. Arena-Hard: MODEL.jsonl with both orders as
games. Judgments that are there already (--judgments) are summed up without asking a judge.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from selfevo_jax.cli import judge_tables
from selfevo_jax.cli.judge_work import output, slug, started
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate import alpaca_eval, arena_hard
from selfevo_jax.evaluate.data import jsonl, raw_rows
from selfevo_jax.evolve.files import write_atomic
from selfevo_jax.judge.health import Health, Known
from selfevo_jax.judge.pairwise import FIRST, SECOND, TIE, Comparison, Contest, called
from selfevo_jax.records import content_id

Compare = Callable[[str, Sequence[Contest]], list[Comparison]]
Difficulty = Mapping[str, float] | None  # of instructions, for AlpacaEval's length control
Conduct = Callable[[Sequence[Comparison], Mapping[str, Known]], Health]
# Order -> what the judge called -> the label of a game. The baseline, always the first output, is
# shown as A in the first game and as B in the second.
GAMES = {
    "ab": {FIRST: "A>B", SECOND: "B>A", TIE: "A=B"},
    "ba": {FIRST: "B>A", SECOND: "A>B", TIE: "A=B"},
}


@dataclass(frozen=True)
class Side:
    """A model's answers against the baseline's, ready to be compared; the baseline's are first.

    `rows` are the answers by contest in the shape of their file, `baseline` its model's name.
    """

    name: str
    baseline: str
    contests: tuple[Contest, ...]
    rows: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What its verdicts are kept under."""
        return f"winrate-{slug(self.name)}"

    @property
    def known(self) -> dict[str, Known]:
        """The lengths of both answers and whose they are, by contest."""
        return {
            c.id: Known(len(c.first), len(c.second), self.baseline, self.name)
            for c in self.contests
        }


def judged(arguments: argparse.Namespace) -> int:
    """Asks the judge about every question in both orders, and shows what it comes to."""
    if not arguments.answers or arguments.baseline is None or len(arguments.model) != 1:
        raise UserError(
            "judge winrate needs --answers=FILE of each model, --baseline=FILE and one --model, "
            "the judge; or --judgments=FILE of finished ones"
        )
    if arguments.limit is not None or arguments.reference_file:
        raise UserError(
            "judge winrate asks about all answers, without references: leave out --limit and "
            "--reference-file"
        )
    judging = started(arguments)
    sides = read_sides(arguments.answers, arguments.baseline)
    (judge,) = judging.names

    def compare(label: str, contests: Sequence[Contest]) -> list[Comparison]:
        (found,) = judging.compare(judging.pairs(label, contests))
        return found

    def conduct(found: Sequence[Comparison], known: Mapping[str, Known]) -> Health:
        return judging.conduct(judge, found, known)

    difficulty = _difficulty(arguments, isinstance(_any_row(sides), arena_hard.Answer))
    if judging.begin([judging.pairs(side.label, side.contests) for side in sides]):
        judge_answers(sides, arguments.out, compare, conduct, judging.console, difficulty)
    return 0


def _difficulty(arguments: argparse.Namespace, arena: bool) -> Difficulty:
    if arguments.difficulty is None:
        return None
    if arena:
        raise UserError("--difficulty is AlpacaEval's, and these files are Arena-Hard's")
    return alpaca_eval.read_difficulty(arguments.difficulty)


def read_sides(paths: Sequence[Path], baseline: Path) -> list[Side]:
    """The answers of each file beside the baseline's. Raises UserError where they do not match."""
    read = _alpaca_eval_side if _has(baseline, "instruction") else _arena_hard_side
    sides: dict[str, Side] = {}
    for path in paths:
        side = read(path, baseline)
        sides[_fresh(side.name, sides, path)] = side
    return list(sides.values())


def judge_answers(
    sides: Sequence[Side],
    out: Path,
    compare: Compare,
    conduct: Conduct,
    console: Console,
    difficulty: Difficulty = None,
) -> None:
    """Compares each side's answers, writes the judgments into `out`, shows the judge's conduct."""
    found = {}
    for side in sides:
        found[side.name] = compare(side.label, side.contests)
        told = conduct(found[side.name], side.known)
        judge_tables.print_conduct(console, f"{side.name} against {side.baseline}", told)
    if isinstance(_any_row(sides), arena_hard.Answer):
        _arena_hard(sides, found, out, console)
    else:
        _alpaca_eval(sides, found, out, console, difficulty)


def summed_up(arguments: argparse.Namespace) -> int:
    """The figures of judgments that are there."""
    console = output()
    arena = _has(arguments.judgments[0], "games")
    difficulty = _difficulty(arguments, arena)
    if arena:
        rows = [row for path in arguments.judgments for row in arena_hard.read_judgments(path)]
        _print_standings(console, rows, None)
        return 0
    results: dict[str, alpaca_eval.WinRate] = {}
    for path in arguments.judgments:
        rows = alpaca_eval.read_annotations(path)
        found = alpaca_eval.win_rate(rows, difficulty)
        results[_fresh(str(rows[0].get("generator_2", path.stem)), results, path)] = found
    judge_tables.print_win_rates(console, results)
    return 0


def _has(path: Path, field: str) -> bool:
    """Whether a file's first row has a field."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a file of answers or judgments")
    _, first = next(iter(raw_rows(path)), ("", {}))
    return field in first


def _alpaca_eval_side(path: Path, baseline: Path) -> Side:
    known, own = alpaca_eval.read_outputs(baseline), alpaca_eval.read_outputs(path)
    pairs = alpaca_eval.paired_outputs(own, known)
    rows = {content_id(pair["instruction"]): pair for pair in pairs}
    contests = [
        Contest(id, p["instruction"], p["output_1"], p["output_2"]) for id, p in rows.items()
    ]
    return Side(pairs[0]["generator_2"], pairs[0]["generator_1"], tuple(contests), rows)


def _alpaca_eval(
    sides: Sequence[Side],
    compared: Mapping[str, Sequence[Comparison]],
    out: Path,
    console: Console,
    difficulty: Difficulty,
) -> None:
    results: dict[str, alpaca_eval.WinRate] = {}
    for side in sides:
        rows = [_annotation(side.rows[c.item_id], c) for c in compared[side.name]]
        target = out / f"annotations_{slug(side.name)}.json"
        write_atomic(target, alpaca_eval.outputs_json(rows).encode())
        results[side.name] = alpaca_eval.win_rate(rows, difficulty)
    write_atomic(out / "leaderboard.csv", alpaca_eval.leaderboard_csv(results).encode())
    judge_tables.print_win_rates(console, results)


def _annotation(pair: Mapping[str, str], found: Comparison) -> dict[str, Any]:
    preference = None if found.p_first is None else 2.0 - found.p_first
    return alpaca_eval.annotation(pair, found.judge, preference)


def _arena_hard_side(path: Path, baseline: Path) -> Side:
    known, own = arena_hard.read_answers(baseline), arena_hard.read_answers(path)
    arena_hard.check_same_questions(own, known)
    contests = [
        Contest(uid, answer.prompt, known[uid].text, answer.text) for uid, answer in own.items()
    ]
    models = [next(iter(answers.values())).model for answers in (own, known)]
    return Side(*models, tuple(contests), own)


def _arena_hard(
    sides: Sequence[Side],
    compared: Mapping[str, Sequence[Comparison]],
    out: Path,
    console: Console,
) -> None:
    every: list[dict[str, Any]] = []
    lengths: dict[tuple[str, str], int] = {}
    for side in sides:
        rows = [_judgment(side.rows[c.item_id], side.baseline, c) for c in compared[side.name]]
        write_atomic(out / f"{slug(side.name)}.jsonl", jsonl(rows).encode())
        every += rows
        for contest in side.contests:
            lengths[side.baseline, contest.id] = len(contest.first)
            lengths[side.name, contest.id] = len(contest.second)
    _print_standings(console, every, lengths)


def _judgment(answer: arena_hard.Answer, baseline: str, found: Comparison) -> dict[str, Any]:
    labels = [
        GAMES[ballot["order"]].get(called(ballot["p"], found.margin)) for ballot in found.ballots
    ]
    return arena_hard.judgment_row(answer.uid, "", found.judge, answer.model, baseline, labels)


def _print_standings(
    console: Console,
    judgments: Sequence[Mapping[str, Any]],
    lengths: Mapping[tuple[str, str], int] | None,
) -> None:
    baseline, *others = {row["baseline"]: None for row in judgments}
    if others:
        raise UserError(f"judgments against {baseline} and {others[0]}: give those of one baseline")
    fought, missing = arena_hard.battles(judgments, lengths)
    plain = arena_hard.standings(fought, baseline)
    fair = arena_hard.standings(fought, baseline, style_control=True) if lengths else ()
    judge_tables.print_standings(console, plain, fair, missing)


def _any_row(sides: Sequence[Side]) -> Any:
    return next(iter(sides[0].rows.values()))


def _fresh(name: str, known: Mapping[str, Any], path: Path) -> str:
    if name in known:
        raise UserError(f"{path}: the model {name} came before; give each file its own name")
    return name
