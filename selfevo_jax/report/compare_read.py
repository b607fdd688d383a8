"""What several runs have to show side by side: who was right about which question, at what cost.

A run has *lines* of policies: its rounds, and one for every variant, judge, strategy or baseline
that it trained besides (a branch of stages, `round_01/BRANCH.train`). A line is charged with the
stages that its policies come from and with those of its own branch, never with those of another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.report.folder import RunFolder, label, line_of
from selfevo_jax.report.tested import Test, tests


@dataclass(frozen=True)
class Point:
    """A policy as it was tested: whether each question was right, by id, and what it had cost.

    `tokens` were generated and trained on until then, without those spent on held-out questions.
    """

    policy: str
    tokens: int
    correct: Mapping[str, bool]

    @property
    def accuracy(self) -> float:
        """The share of questions that were right."""
        return sum(self.correct.values()) / len(self.correct)


@dataclass(frozen=True)
class Line:
    """One line of policies of a run, cheapest first; the first is the untrained one."""

    run: str
    name: str
    method: str
    task: str
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """The run, and the line where it is not the run's only one."""
        return f"{self.run}: {self.name}" if self.name else self.run


def read_lines(workdir: Path, name: str = "") -> list[Line]:
    """The lines of a run, called `name`, that hold a trained policy; else one with the untrained.

    Raises UserError for a folder without a summary, and for a run in which nothing was tested.
    """
    run = _Run(workdir)
    start: Point | None = None
    trained: dict[str, list[Point]] = {}
    for line, point in run.points():
        if point.tokens:
            trained.setdefault(line, []).append(point)
        start = start or (None if point.tokens else point)
    if start is None:
        raise UserError(f"{workdir}: no untrained policy was tested; nothing can be compared")
    about = str(run.about.get("method", "")), str(run.about.get("task", ""))
    return [
        Line(name or str(workdir), line, *about, (start, *sorted(points, key=lambda p: p.tokens)))
        for line, points in (trained or {"": []}).items()
    ]


class _Run:
    """The stages of a run, what each depends on, and what each cost."""

    def __init__(self, workdir: Path) -> None:
        self.folder = RunFolder(workdir)
        self.about = self.folder.document("run.json")
        stages = self.folder.document("summary.json").get("stages")
        if not stages:
            raise UserError(
                f"{workdir} has no summary of its stages' costs; run selfevo report {workdir}"
            )
        self.stages: list[Mapping[str, Any]] = stages
        self.place = {stage["stage"]: place for place, stage in enumerate(stages)}
        self.by_label = {stage["stage"]: stage for stage in stages}
        policies = self.about.get("policies", {}).values()
        self.made_by = {
            p["hash"]: str(Path(p["adapter"]).parent) for p in policies if p.get("adapter")
        }

    def points(self) -> Iterator[tuple[str, Point]]:
        """(line, point) of every test, in the order of the plan."""
        for test in tests(self.folder):
            stage = self.by_label.get(label(test.place))
            if stage is not None and stage["measuring"]:
                yield test.line, Point(test.title, self._spent(stage), _right(test))

    def _spent(self, tested: Mapping[str, Any]) -> int:
        """Tokens generated and trained on for what `tested` tested."""
        needed = self._behind(tested["stage"]) | set(self._own(tested["stage"]))
        return sum(
            stage["generated_tokens"] + stage["trained_tokens"]
            for stage in self.stages
            if stage["stage"] in needed and not stage["measuring"]
        )

    def _behind(self, stage: str) -> set[str]:
        """The stages that a stage depends on, directly or not."""
        found: set[str] = set()
        waiting = [stage]
        while waiting:
            inputs = self.folder.document(f"{waiting.pop()}/stage.json")
            inputs = inputs.get("stage", {}).get("inputs", {})
            named = {name for name in inputs if name in self.place}
            made = {self.made_by[value] for value in inputs.values() if value in self.made_by}
            waiting += (named | made) - found
            found |= named | made
        return found

    def _own(self, tested: str) -> Iterator[str]:
        """The stages of the same line that came before: choosing and judging, say."""
        line, trained = line_of(tested), bool(self._behind(tested) & set(self.made_by.values()))
        for stage in [s["stage"] for s in self.stages][: self.place[tested]] if trained else ():
            other, name = line_of(stage), stage.rpartition(".")[2]
            own = other == line or (line and f"{other}.".startswith(f"{line}."))
            if own and not name.startswith("gauge"):  # a gauge decides nothing, but by its limits
                yield stage


def _right(test: Test) -> dict[str, bool]:
    """Whether each question was right, by id."""
    return {
        name: bool(answer["correct"])
        for by_id in test.answers.values()
        for name, answer in by_id.items()
    }


def within(points: Sequence[Point], budget: int) -> Point:
    """The last policy that cost no more than the budget; the untrained one costs nothing."""
    return [point for point in points if point.tokens <= budget][-1]
