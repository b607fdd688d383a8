"""Runs side by side, at equal budget and in their ends: paired tests, and what cannot be compared.

The budget is in tokens generated and trained on: a given one, or the cheapest line's whole cost.
Every line is represented by its last policy within it; one whose first trained policy costs more
has nothing there, and meets nobody. In the end every line stands with its last policy, whatever
that has cost. Lines are compared on the questions that both have answered, and on no others.
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
class Result:
    """A trained policy of a line as it was tested, and its gain over the untrained one."""

    point: Point
    interval: Interval
    gain: Difference


@dataclass(frozen=True)
class Standing:
    """A line: its last policy within the budget, and in the end. None: nothing was trained."""

    line: Line
    at: Result | None
    end: Result | None

    @property
    def lacks(self) -> str:
        """Why nothing stands at the budget, in words; else nothing."""
        if self.at is not None:
            return ""
        if self.end is None:
            return "nothing was trained"
        return f"its first trained policy costs {self.line.points[1].tokens:,} tokens"


@dataclass(frozen=True)
class Contest:
    """Two policies on the questions in common; `p_holm` is corrected for all contests of its list.

    `differing` questions were answered by one of them only.
    """

    first: str
    second: str
    difference: Difference
    differing: int
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Everything that is told of several runs. `apart` names lines without a common question.

    `contests` are at the budget, `ends` between what the lines end with, where that differs.
    """

    budget: int
    standings: tuple[Standing, ...]
    contests: tuple[Contest, ...]
    ends: tuple[Contest, ...]
    apart: tuple[tuple[str, str], ...]

    @property
    def meetings(self) -> tuple[tuple[str, tuple[Contest, ...]], ...]:
        """(where, contests) of both lists."""
        return ("at the budget", self.contests), ("in the end", self.ends)


def compare(workdirs: Sequence[Path], budget: int | None = None) -> Comparison:
    """Compares the runs at a budget in tokens; without one, at the whole cost of the cheapest.

    Raises UserError for fewer than two lines, or when none was trained (within the budget).
    """
    names = [workdir.resolve().name for workdir in workdirs]
    names = names if len(set(names)) == len(names) else [str(workdir) for workdir in workdirs]
    lines = [line for pair in zip(workdirs, names, strict=True) for line in read_lines(*pair)]
    totals = [line.points[-1].tokens for line in lines if line.points[-1].tokens]
    if len(lines) < 2:
        raise UserError(f"{lines[0].run} has one line of policies; give two runs or more")
    if not totals:
        raise UserError("no run has a trained policy that was tested; there is nothing to compare")
    least = min(line.points[1].tokens for line in lines if len(line.points) > 1)
    if budget is not None and budget < least:
        raise UserError(
            f"--budget={budget}: nothing was trained within it; the cheapest policy costs {least:,}"
        )
    budget = min(totals) if budget is None else budget
    standings = tuple(_standing(line, budget) for line in lines)
    contests, apart = _contests([(s.line.label, s.at.point) for s in standings if s.at])
    ends, apart_in_the_end = _contests([(s.line.label, s.end.point) for s in standings if s.end])
    apart = tuple(dict.fromkeys(apart + apart_in_the_end))
    same = all(standing.at == standing.end for standing in standings)
    return Comparison(budget, standings, contests, () if same else ends, apart)


def _standing(line: Line, budget: int) -> Standing:
    at, end = (_result(line, point) for point in (within(line.points, budget), line.points[-1]))
    return Standing(line, at, end)


def _result(line: Line, point: Point) -> Result | None:
    start = line.points[0]
    if point is start:
        return None
    shared = sorted(start.correct.keys() & point.correct.keys())
    if not shared:
        raise UserError(f"{line.label}: its policies were tested on different questions")
    interval = wilson_interval(sum(point.correct.values()), len(point.correct))
    return Result(point, interval, _paired(start, point, shared))


def _paired(first: Point, second: Point, shared: Sequence[str]) -> Difference:
    one, other = ([float(point.correct[name]) for name in shared] for point in (first, second))
    return paired_difference(one, other)


def _contests(
    labelled: Sequence[tuple[str, Point]],
) -> tuple[tuple[Contest, ...], tuple[tuple[str, str], ...]]:
    """Every pair of (line, its policy) with questions in common, and the other pairs of lines."""
    pairs, apart = [], []
    for (one, first), (two, second) in combinations(labelled, 2):
        shared = sorted(first.correct.keys() & second.correct.keys())
        if not shared:
            apart.append((one, two))
            continue
        differing = len(first.correct.keys() ^ second.correct.keys())
        pairs.append((one, two, _paired(first, second, shared), differing))
    corrected = holm([difference.p_value for *_, difference, _ in pairs])
    found = [
        Contest(one, two, difference, differing, p)
        for (one, two, difference, differing), p in zip(pairs, corrected, strict=True)
    ]
    return tuple(found), tuple(apart)
