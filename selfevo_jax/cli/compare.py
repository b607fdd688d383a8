"""`selfevo compare`: runs side by side at equal budget, with paired tests."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.cli.common import WIDE, nothing_left, verb


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "compare",
        act,
        "Compare runs at equal budget (tokens generated and trained on) and in their ends.",
        "selfevo compare runs/refeval runs/elite --out=compare.json --plot=compare.html",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="workdirs of runs")
    parser.add_argument("--budget", type=int, metavar="N", help="tokens; else the cheapest's cost")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the same figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.html", help="a page with the plot")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    from rich.console import Console

    from selfevo_jax.evolve.files import write_atomic, write_json
    from selfevo_jax.report.compare import compare
    from selfevo_jax.report.compare_page import page

    comparison = compare(arguments.runs, arguments.budget)
    width = None if sys.stdout.isatty() else WIDE
    _print(Console(highlight=False, soft_wrap=True, width=width), comparison)
    if arguments.out:
        write_json(arguments.out, _plain(comparison))
    if arguments.plot:
        write_atomic(arguments.plot, page(comparison).encode("utf-8", "backslashreplace"))
    return 0


def _print(console, comparison) -> None:
    from selfevo_jax.report.compare_page import HEADS, cells, lacking
    from selfevo_jax.text.terminal import PlainTable, say

    console.print(
        f"at equal budget: {comparison.budget:,} tokens generated and trained on; intervals 95 %"
    )
    table = PlainTable("run", *HEADS, box=None)
    for standing in comparison.standings:
        table.add_row(standing.line.label, *cells(standing))
    console.print(table)
    for line in lacking(comparison):
        say(console, line)
    for where, contests in comparison.meetings:
        for contest in contests:
            say(console, f"{where}, {_told(contest)}")
    for first, second in comparison.apart:
        say(console, f"not comparable: {first} and {second} answered different questions")


def _told(contest) -> str:
    from selfevo_jax.report.compare_page import points

    c, d = contest, contest.difference
    unshared = f", {c.differing} questions not shared" if c.differing else ""
    return (
        f"{c.second} over {c.first}: {points(d.gain)} ({points(d.low)} to {points(d.high)}, "
        f"n = {d.n}{unshared}, p {d.p_value:.3g}, corrected {c.p_holm:.3g})"
    )


def _plain(comparison) -> dict[str, Any]:
    """The figures without the single answers."""
    standings = [
        {
            "run": s.line.run, "line": s.line.name, "method": s.line.method, "task": s.line.task,
            "at_budget": _result(s.at), "end": _result(s.end), "lacks": s.lacks,
            "curve": [
                {"policy": p.policy, "tokens": p.tokens, "accuracy": p.accuracy}
                for p in s.line.points
            ],
        }
        for s in comparison.standings
    ]  # fmt: skip
    apart = [{"first": first, "second": second} for first, second in comparison.apart]
    contests, ends = (
        [dataclasses.asdict(contest) for contest in contests]
        for contests in (comparison.contests, comparison.ends)
    )
    return {
        "budget_tokens": comparison.budget,
        "standings": standings,
        "contests": contests,
        "contests_in_the_end": ends,
        "not_comparable": apart,
    }


def _result(result) -> dict[str, Any] | None:
    """A trained policy at the budget or in the end; None where there is none."""
    if result is None:
        return None
    point = result.point
    return {
        "policy": point.policy, "tokens": point.tokens, "n": len(point.correct),
        "accuracy": point.accuracy, **dataclasses.asdict(result.interval),
        "gain": dataclasses.asdict(result.gain),
    }  # fmt: skip
