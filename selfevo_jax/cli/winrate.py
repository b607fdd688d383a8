"""`selfevo judge winrate`: answers against a baseline's, in the files of AlpacaEval or Arena-Hard.

Which of the two is told by the baseline's rows. AlpacaEval: annotations_MODEL.json with the judge's
probability as the preference, and leaderboard.csv. Arena-Hard: MODEL.jsonl with both orders as
games. Judgments that are there already (--judgments) are summed up without asking a judge.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from selfevo_jax.cli import judge_tables
from selfevo_jax.cli.judge_work import started
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate import alpaca_eval, arena_hard
from selfevo_jax.evaluate.data import raw_rows
from selfevo_jax.evolve.files import write_atomic
from selfevo_jax.judge.pairwise import FIRST, SECOND, TIE, Comparison, Contest, called
from selfevo_jax.records import content_id

Compare = Callable[[str, Sequence[Contest]], list[list[Comparison]]]
# Order -> what the judge called -> the label of a game. The baseline, always the first output, is
# shown as A in the first game and as B in the second.
GAMES = {
    "ab": {FIRST: "A>B", SECOND: "B>A", TIE: "A=B"},
    "ba": {FIRST: "B>A", SECOND: "A>B", TIE: "A=B"},
}


def winrate(arguments: argparse.Namespace) -> int:
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
    judging, console = started(arguments)
    judge_answers(arguments.answers, arguments.baseline, arguments.out, judging.compare, console)
    return 0


def judge_answers(
    paths: Sequence[Path], baseline: Path, out: Path, compare: Compare, console: Console
) -> None:
    """Compares the answers of each file with the baseline's, writes the judgments into `out`."""
    judge = _alpaca_eval if _has(baseline, "instruction") else _arena_hard
    judge(paths, baseline, out, compare, console)


def summed_up(arguments: argparse.Namespace) -> int:
    """The figures of judgments that are there."""
    _, console = started(arguments)
    if _has(arguments.judgments[0], "games"):
        rows = [row for path in arguments.judgments for row in arena_hard.read_judgments(path)]
        _print_standings(console, rows, None)
        return 0
    results: dict[str, alpaca_eval.WinRate] = {}
    for path in arguments.judgments:
        rows = alpaca_eval.read_annotations(path)
        found = alpaca_eval.win_rate(rows)
        results[_fresh(str(rows[0].get("generator_2", path.stem)), results, path)] = found
    judge_tables.print_win_rates(console, results)
    return 0


def _has(path: Path, field: str) -> bool:
    """Whether a file's first row has a field."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a file of answers or judgments")
    _, first = next(iter(raw_rows(path)), ("", {}))
    return field in first


def _alpaca_eval(
    paths: Sequence[Path], baseline: Path, out: Path, compare: Compare, console: Console
) -> None:
    known = alpaca_eval.read_outputs(baseline)
    results: dict[str, alpaca_eval.WinRate] = {}
    for path in paths:
        pairs = alpaca_eval.paired_outputs(alpaca_eval.read_outputs(path), known)
        name = _fresh(pairs[0]["generator_2"], results, path)
        contests = [
            Contest(content_id(p["instruction"]), p["instruction"], p["output_1"], p["output_2"])
            for p in pairs
        ]
        (found,) = compare(f"winrate-{_slug(name)}", contests)
        rows = [_annotation(*both) for both in zip(pairs, found, strict=True)]
        target = out / f"annotations_{_slug(name)}.json"
        write_atomic(target, alpaca_eval.outputs_json(rows).encode())
        results[name] = alpaca_eval.win_rate(rows)
    write_atomic(out / "leaderboard.csv", alpaca_eval.leaderboard_csv(results).encode())
    judge_tables.print_win_rates(console, results)


def _annotation(pair: Mapping[str, str], found: Comparison) -> dict[str, Any]:
    preference = None if found.p_first is None else 2.0 - found.p_first
    return alpaca_eval.annotation(pair, found.judge, preference)


def _arena_hard(
    paths: Sequence[Path], baseline: Path, out: Path, compare: Compare, console: Console
) -> None:
    known = arena_hard.read_answers(baseline)
    every, lengths = [], _lengths(known)
    for path in paths:
        answers = arena_hard.read_answers(path)
        arena_hard.check_same_questions(answers, known)
        name = _fresh(next(iter(answers.values())).model, {r["model"]: r for r in every}, path)
        contests = [
            Contest(uid, answer.prompt, known[uid].text, answer.text)
            for uid, answer in answers.items()
        ]
        (found,) = compare(f"winrate-{_slug(name)}", contests)
        rows = [_judgment(answers[c.item_id], known[c.item_id].model, c) for c in found]
        write_atomic(out / f"{_slug(name)}.jsonl", arena_hard.jsonl(rows).encode())
        every += rows
        lengths |= _lengths(answers)
    _print_standings(console, every, lengths)


def _judgment(answer: arena_hard.Answer, baseline: str, found: Comparison) -> dict[str, Any]:
    labels = [
        GAMES[ballot["order"]].get(called(ballot["p"], found.margin)) for ballot in found.ballots
    ]
    return arena_hard.judgment_row(answer.uid, "", found.judge, answer.model, baseline, labels)


def _lengths(answers: Mapping[str, arena_hard.Answer]) -> dict[tuple[str, str], int]:
    return {(answer.model, uid): len(answer.text) for uid, answer in answers.items()}


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


def _fresh(name: str, known: Mapping[str, Any], path: Path) -> str:
    if name in known:
        raise UserError(f"{path}: the model {name} came before; give each file its own name")
    return name


def _slug(name: str) -> str:
    """A model's name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)
