"""What every stage of a run has in common: its key, its folder, its place in the plan.

A stage that is finished and depends on nothing that changed is not run again; one that was
interrupted goes on. The same object, told to plan, notes what each stage would do instead.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevo_jax.evolve.files import write_json
from selfevo_jax.evolve.meter import Meter
from selfevo_jax.evolve.plan import Step
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import Stage, StageFolder, Work, journals, run_stage
from selfevo_jax.evolve.views import R, Records, records
from selfevo_jax.learn.carried import OPTIMIZER
from selfevo_jax.parallel.distributed import agreed, first

UNKNOWN = "not known yet"


@dataclass(frozen=True)
class Recipe:
    """How a stage from records to records is done: `total` inputs, each by `work`.

    `items` gives (id, value) in input order. `most` bounds the records, where it is not one for
    each input. Fewer than `least` records end the run with `why`.
    """

    items: Callable[[], Iterable[tuple[str, Any]]]
    work: Callable[[], Work]
    total: int
    unit: str
    data: str
    model: str = ""
    most: int | None = None
    least: int = 1
    why: str = "the stage gave nothing"


class Stages:
    """The stages of one workdir. `planning` makes every call only note what it would do.

    `measuring` are the stages that look at the test split, or at what was made from it. No policy
    is trained or chosen from these; what they cost is counted apart.
    """

    def __init__(self, workdir: Path, progress: Progress, *, planning: bool = False) -> None:
        self.workdir, self.progress, self.planning = workdir, progress, planning
        self.round = 0
        self.branch = ""
        self.plan: list[Step] = []
        self.measuring: set[str] = set()
        self.meter = Meter()

    @contextlib.contextmanager
    def within(self, branch: str) -> Iterator[None]:
        """Stages asked for in this block belong to a branch: `round_01/BRANCH.sample`."""
        before, self.branch = self.branch, f"{self.branch}{branch}."
        yield
        self.branch = before

    def records(
        self,
        name: str,
        kind: type[R],
        recipe: Recipe,
        *,
        settings: Mapping[str, Any],
        version: str,
        inputs: Mapping[str, str | None],
        measuring: bool = False,
    ) -> Records[R]:
        """One stage from records to records: noted when planning, else done if it is not yet.

        `measuring`: it looks at the test split; whatever reads it then does so as well.
        """
        total, most = recipe.total, recipe.most
        stage = self._stage(name, settings, version, inputs, recipe.least, recipe.why)
        if measuring or self.measuring & inputs.keys():
            self.measuring.add(stage.name)
        amount = f"{total} {recipe.unit}" if most is None else f"at most {most} records"
        folder, state = self._note(stage, recipe.model, recipe.data, amount)
        if self.planning:  # counts as if nothing were there: a plan is the same at every start
            known = folder.content_hash() if state == "done" else None
            return records(stage.name, kind, folder, known, total if most is None else most)
        if agreed(lambda: self._must_run(stage, folder)):
            with self.progress.stage(stage.name, total, recipe.unit) as bar:
                run_stage(folder, stage, recipe.items(), recipe.work(), bar.advance, self.meter)
        if first():
            for journal in journals(folder.path):
                journal.unlink(missing_ok=True)
        return records(stage.name, kind, folder, folder.content_hash(), folder.count())

    def files(
        self,
        name: str,
        make: Callable[[Path, Callable[[int, str], None]], dict[str, int]],
        *,
        settings: Mapping[str, Any],
        version: str,
        inputs: Mapping[str, str | None],
        model: str,
        data: str,
        amount: str,
    ) -> tuple[Path, str | None]:
        """One stage that makes an adapter: its folder and content hash (None: not known yet).

        `make(folder, advance)` leaves adapter/ and metrics.jsonl there and returns counts; after
        an interruption it is called again on the same folder.
        """
        self.assert_unseen(inputs)
        stage = self._stage(name, settings, version, inputs)
        folder, state = self._note(stage, model, data, amount)
        if self.planning:
            return folder.path, folder.content_hash() if state == "done" else None
        if agreed(lambda: self._must_run(stage, folder)):
            agreed(lambda: write_json(folder.path / "begun.json", {"key": stage.key}))
            with self.progress.stage(stage.name, None, "steps") as bar:
                counts = make(folder.path, bar.advance)
            agreed(lambda: _seal(folder, stage, counts))
        agreed(lambda: _tidy(folder.path))
        return folder.path, folder.content_hash()

    def assert_unseen(self, inputs: Mapping[str, str | None]) -> None:
        """That nothing here comes from the test split, which decides nothing."""
        seen = self.measuring & inputs.keys()
        assert not seen, f"{', '.join(sorted(seen))} comes from the test split"

    def _must_run(self, stage: Stage, folder: StageFolder) -> bool:
        """Whether there is something to do; output of another key is moved aside first."""
        status, why = folder.status(stage)
        if status == "done":
            folder.verify()
            self.progress.say(f"{stage.name}: finished before, nothing to do")
        if status == "part":
            self.progress.say(f"{stage.name}: goes on where it stopped")
        if status == "changed":
            kept = folder.set_aside(self.workdir).relative_to(self.workdir)
            self.progress.say(f"{stage.name}: runs again ({why}); the old output is in {kept}")
        return status != "done"

    def _note(self, stage: Stage, model: str, data: str, amount: str) -> tuple[StageFolder, str]:
        folder = StageFolder(self.workdir / stage.name)
        assert stage.name not in {step.stage for step in self.plan}, f"{stage.name} is named twice"
        state = _planned_state(stage, folder) if self.planning else ""
        measuring = stage.name in self.measuring
        self.plan.append(Step(stage.name, model, data, amount, state, measuring))
        return folder, state

    def _stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        version: str,
        inputs: Mapping[str, str | None],
        least: int = 1,
        why: str = "",
    ) -> Stage:
        known = {key: UNKNOWN if value is None else value for key, value in inputs.items()}
        full = f"round_{self.round:02d}/{self.branch}{name}"
        return Stage(full, version, settings, known, least, why)


def _planned_state(stage: Stage, folder: StageFolder) -> str:
    """What would happen to a stage, as far as that can be known before its inputs are."""
    sealed = folder.sealed()
    if sealed is not None and UNKNOWN in stage.inputs.values():
        old = sealed["stage"]["inputs"]
        known = {
            key: old.get(key, value) if value == UNKNOWN else value
            for key, value in stage.inputs.items()
        }
        stage = Stage(stage.name, stage.version, stage.settings, known)
        status, why = folder.status(stage)
        return f"again: {why}" if status == "changed" else "again if its inputs change"
    status, why = folder.status(stage)
    if status == "part" or (status == "changed" and UNKNOWN in stage.inputs.values()):
        return "goes on"
    return {"done": "done", "new": "to do", "changed": f"again: {why}"}[status]


def _seal(folder: StageFolder, stage: Stage, counts: Mapping[str, int]) -> None:
    made = [f"adapter/{file.name}" for file in (folder.path / "adapter").iterdir()]
    made += [name for name in ("metrics.jsonl", OPTIMIZER) if (folder.path / name).exists()]
    folder.seal(stage, counts, made)


def _tidy(folder: Path) -> None:
    """Removes what only an unfinished training needs: checkpoints, half-written adapters."""
    for leftover in [folder / "checkpoints", folder / "best", *folder.glob(".adapter.*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    (folder / "begun.json").unlink(missing_ok=True)
