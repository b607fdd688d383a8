"""Runs side by side at equal budget: one table, paired tests, and what cannot be compared.

The budget is in tokens generated and trained on, and as large as the cheapest line's whole cost;
every line is represented by its last policy within it. Lines are compared on the questions that
both have answered, and on no others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.stats import (
    Difference,
    Interval,
    holm,
    paired_difference,
    wilson_interval,
)
from selfevo_jax.report.compare_read import Line, Point, read_lines, within


@dataclass(frozen=True)
class Standing:
    """A line at the budget: `at` is its last policy within it, `gain` its gain over the untrained.

    There is no gain where nothing was trained within the budget.
    """

    line: Line
    at: Point
    interval: Interval
    gain: Difference | None


@dataclass(frozen=True)
class Contest:
    """Two lines at the budget on the questions in common; `p_holm` is corrected for all contests.

    `differing` questions were answered in one of them only.
    """

    first: str
    second: str
    difference: Difference
    differing: int
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Everything that is told of several runs. `apart` names lines without a common question."""

    budget: int
    standings: tuple[Standing, ...]
    contests: tuple[Contest, ...]
    apart: tuple[tuple[str, str], ...]


def compare(workdirs: Sequence[Path]) -> Comparison:
    """Compares the runs. Raises UserError for fewer than two lines, or when none was trained."""
    names = [workdir.resolve().name for workdir in workdirs]
    names = names if len(set(names)) == len(names) else [str(workdir) for workdir in workdirs]
    lines = [line for pair in zip(workdirs, names, strict=True) for line in read_lines(*pair)]
    totals = [line.points[-1].tokens for line in lines if line.points[-1].tokens]
    if len(lines) < 2:
        raise UserError(f"{lines[0].run} has one line of policies; give two runs or more")
    if not totals:
        raise UserError("no run has a trained policy that was tested; there is nothing to compare")
    budget = min(totals)
    standings = tuple(_standing(line, budget) for line in lines)
    contests, apart = _contests(standings)
    return Comparison(budget, standings, contests, apart)


def _standing(line: Line, budget: int) -> Standing:
    at, start = within(line.points, budget), line.points[0]
    shared = sorted(start.correct.keys() & at.correct.keys())
    if not shared:
        raise UserError(f"{line.label}: its policies were tested on different questions")
    interval = wilson_interval(sum(at.correct.values()), len(at.correct))
    return Standing(line, at, interval, _paired(start, at, shared) if at is not start else None)


def _paired(first: Point, second: Point, shared: Sequence[str]) -> Difference:
    one, other = ([float(point.correct[name]) for name in shared] for point in (first, second))
    return paired_difference(one, other)


def _contests(
    standings: Sequence[Standing],
) -> tuple[tuple[Contest, ...], tuple[tuple[str, str], ...]]:
    """Every pair of lines with questions in common, and the other pairs."""
    pairs, apart = [], []
    for one, two in combinations(standings, 2):
        shared = sorted(one.at.correct.keys() & two.at.correct.keys())
        if not shared:
            apart.append((one.line.label, two.line.label))
            continue
        differing = len(one.at.correct.keys() ^ two.at.correct.keys())
        pairs.append((one, two, _paired(one.at, two.at, shared), differing))
    corrected = holm([difference.p_value for *_, difference, _ in pairs])
    found = [
        Contest(one.line.label, two.line.label, difference, differing, p)
        for (one, two, difference, differing), p in zip(pairs, corrected, strict=True)
    ]
    return tuple(found), tuple(apart)
