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
        "Compare runs at equal budget: tokens generated and trained on.",
        "selfevo compare runs/refeval runs/elite --out=compare.json --plot=compare.html",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="workdirs of runs")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the same figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.html", help="a page with the plot")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    from rich.console import Console

    from selfevo_jax.evolve.files import write_atomic, write_json
    from selfevo_jax.report.compare import compare
    from selfevo_jax.report.compare_page import page

    comparison = compare(arguments.runs)
    width = None if sys.stdout.isatty() else WIDE
    _print(Console(highlight=False, soft_wrap=True, width=width), comparison)
    if arguments.out:
        write_json(arguments.out, _plain(comparison))
    if arguments.plot:
        write_atomic(arguments.plot, page(comparison).encode("utf-8", "backslashreplace"))
    return 0


def _print(console, comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    from selfevo_jax.report.compare_page import HEADS, cells, points

    console.print(
        f"at equal budget: {comparison.budget:,} tokens generated and trained on; intervals 95 %"
    )
    table = Table("run", *HEADS, box=None)
    for standing in comparison.standings:
        table.add_row(escape(standing.line.label), *map(escape, cells(standing)))
    console.print(table)
    for c in comparison.contests:
        d = c.difference
        unshared = f", {c.differing} questions not shared" if c.differing else ""
        console.print(
            f"{c.second} over {c.first}: {points(d.gain)} ({points(d.low)} to {points(d.high)}, "
            f"n = {d.n}{unshared}, p {d.p_value:.3g}, corrected {c.p_holm:.3g})",
            markup=False,
        )
    for first, second in comparison.apart:
        console.print(
            f"not comparable: {first} and {second} answered different questions", markup=False
        )


def _plain(comparison) -> dict[str, Any]:
    """The figures without the single answers."""
    standings = [
        {
            "run": s.line.run, "line": s.line.name, "method": s.line.method, "task": s.line.task,
            "policy": s.at.policy, "tokens": s.at.tokens, "n": len(s.at.correct),
            "accuracy": s.at.accuracy, **dataclasses.asdict(s.interval),
            "gain": dataclasses.asdict(s.gain) if s.gain else None,
            "curve": [
                {"policy": p.policy, "tokens": p.tokens, "accuracy": p.accuracy}
                for p in s.line.points
            ],
        }
        for s in comparison.standings
    ]  # fmt: skip
    apart = [{"first": first, "second": second} for first, second in comparison.apart]
    contests = [dataclasses.asdict(contest) for contest in comparison.contests]
    return {
        "budget_tokens": comparison.budget,
        "standings": standings,
        "contests": contests,
        "not_comparable": apart,
    }
