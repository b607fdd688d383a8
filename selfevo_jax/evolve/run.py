"""The run as a method sees it: prompts, samples, verdicts, pairs, policies, rounds.

Each call names one stage of the current round. A stage that is finished and depends on nothing
that changed is not run again; one that was interrupted goes on. The same object, told to plan,
notes what each call would do instead of doing it.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ml_collections import FrozenConfigDict

from selfevo_jax.evaluate.task import Task
from selfevo_jax.evolve import work
from selfevo_jax.evolve.backend import Backend
from selfevo_jax.evolve.files import write_json
from selfevo_jax.evolve.plan import Step
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import JOURNAL, Stage, StageFolder, Work, read_records, run_stage
from selfevo_jax.records import (
    Answer,
    Pair,
    Prompt,
    Record,
    Sample,
    Verdict,
    content_id,
    join,
)
from selfevo_jax.sample.protocol import SamplingParams

R = TypeVar("R", bound=Record)

UNKNOWN = "not known yet"


@dataclass(frozen=True)
class Records(Generic[R]):
    """The output of a stage: iterate it, as often as needed, for its records in order."""

    stage: str
    kind: type[R]
    folder: StageFolder
    hash: str | None
    count: int

    def __iter__(self) -> Iterator[R]:
        return read_records(self.folder, self.kind)


class Run:
    """One run of a method in a workdir. `planning` makes every call only note what it would do.

    `remember` is called with the run whenever it has a new policy.
    """

    def __init__(
        self,
        config: FrozenConfigDict,
        workdir: Path,
        task: Task,
        backend: Backend,
        progress: Progress,
        *,
        planning: bool = False,
        remember: Callable[["Run"], None] = lambda run: None,
    ) -> None:
        self.config, self.workdir, self.task = config, workdir, task
        self.backend, self.progress, self.planning = backend, progress, planning
        self._remember = remember
        self.round = 0
        self.plan: list[Step] = []
        self.policies: list[Policy] = []

    def base(self) -> Policy:
        """The policy that the run starts from: the base model without an adapter."""
        return self._keep(Policy("base", self.backend.hash))

    def rounds(self) -> Iterator[int]:
        """The numbers of the rounds, from 1; stages asked for in between belong to that round."""
        for number in range(1, self.config.rounds + 1):
            self.round = number
            yield number

    def prompts(self) -> Records[Prompt]:
        """This round's training prompts: `prompts.n` that no other round uses."""
        first, number = (self.round - 1) * self.config.prompts.n, self.config.prompts.n
        drawn = self.task.prompts("train", first + number, self.config.seed)
        return self._records(
            "prompts",
            Prompt,
            settings=self._task_settings() | {"split": "train", "first": first, "n": number},
            version=work.task_version(self.task),
            inputs=work.task_inputs(self.task),
            items=lambda: ((prompt.id, prompt) for prompt in islice(drawn, first, None)),
            work=lambda: work.each(lambda prompt: [prompt]),
            total=number,
            unit="prompts",
            data=f"{self.task.name} train",
        )

    def sample(self, prompts: Records[Prompt], policy: Policy) -> Records[Sample]:
        """`sample.n` completions of each prompt by `policy`."""
        settings = self.config.sample.to_dict()
        number = settings.pop("n")
        sampling = SamplingParams(**settings)
        seed = self.config.seed
        return self._records(
            "sample",
            Sample,
            settings=self._generation(settings) | {"n": number, "seed": seed},
            version=work.SAMPLER_VERSION,
            inputs={"prompts": prompts.hash, "policy": policy.hash},
            items=lambda: work.draws(prompts, number),
            work=lambda: work.sampled(self.backend.generator(policy), policy.name, seed, sampling),
            total=prompts.count * number,
            unit="samples",
            model=policy.name,
            data=f"{prompts.stage} x {number}",
        )

    def check(self, samples: Records[Sample], prompts: Records[Prompt]) -> Records[Verdict]:
        """The task's own verdict on each sample."""
        return self._records(
            "check",
            Verdict,
            settings=self._task_settings(),
            version=work.task_version(self.task),
            inputs={"samples": samples.hash, "prompts": prompts.hash},
            items=lambda: (
                (sample.id, (sample, prompt))
                for sample, prompt in join(samples, prompts, "prompt_id", "id")
            ),
            work=lambda: work.checked(self.task),
            total=samples.count,
            unit="verdicts",
            data=samples.stage,
        )

    def pair(
        self, prompts: Records[Prompt], samples: Records[Sample], verdicts: Records[Verdict]
    ) -> Records[Pair]:
        """Right against wrong samples of the same prompt, at most `pair.per_prompt` each."""
        limit = self.config.pair.per_prompt
        return self._records(
            "pair",
            Pair,
            settings={"per_prompt": limit},
            version=work.source_version(work.right_against_wrong),
            inputs={"prompts": prompts.hash, "samples": samples.hash, "verdicts": verdicts.hash},
            items=lambda: _judged_groups(prompts, samples, verdicts),
            work=lambda: work.each(lambda value: work.right_against_wrong(*value, limit)),
            total=prompts.count,
            most=prompts.count * limit,
            unit="prompts",
            why_least=(
                "no prompt has both a right and a wrong sample, so there is nothing to learn from; "
                "choose an easier or harder task, or raise sample.n or prompts.n"
            ),
            data=verdicts.stage,
        )

    def evaluate(self, policy: Policy) -> Records[Answer]:
        """Greedy answers of `policy` to the held-out prompts, always the same ones, marked."""
        settings = self.config.evaluate.to_dict()
        number = settings.pop("n")
        sampling = SamplingParams(temperature=0.0, **settings)
        return self._records(
            "evaluate",
            Answer,
            settings=self._generation(settings) | self._task_settings() | {"n": number},
            version=f"{work.task_version(self.task)}/{work.SAMPLER_VERSION}",
            inputs=work.task_inputs(self.task) | {"policy": policy.hash},
            items=lambda: (
                (prompt.id, prompt)
                for prompt in self.task.prompts("test", number, self.config.seed)
            ),
            work=lambda: work.answered(
                self.backend.generator(policy), policy.name, self.task, sampling
            ),
            total=number,
            unit="answers",
            model=policy.name,
            data=f"{self.task.name} test",
        )

    def train(self, pairs: Records[Pair], start: Policy) -> Policy:
        """A new policy: `start` trained on `pairs`, with `start` as the frozen reference."""
        name = f"round_{self.round:02d}"
        stage = self._stage(
            "train",
            settings=self.backend.train_settings(),
            version=self.backend.trainer_version,
            inputs={"pairs": pairs.hash, "start": start.hash, "base": self.backend.hash},
        )
        folder = self._folder("train")
        state = self._note(
            stage,
            folder,
            model=f"start {start.name}, reference {start.name}",
            data=pairs.stage,
            amount=f"at most {pairs.count} pairs x {self.config.learn.epochs} epochs",
        )
        if not self.planning and self._must_run(stage, folder):
            self._fit(stage, folder, pairs, start)
        if not self.planning:
            _tidy(folder.path)
        known = not self.planning or state == "done"
        identity = content_id(start.hash, folder.content_hash()) if known else None
        return self._keep(Policy(name, identity, folder.path / "adapter", start.name))

    def _fit(self, stage: Stage, folder: StageFolder, pairs: Records[Pair], start: Policy) -> None:
        """Trains into the stage's folder; the trainer keeps its own checkpoints there."""
        write_json(folder.path / "begun.json", {"key": stage.key})
        with self.progress.stage(stage.name, None, "steps") as bar:
            counts = self.backend.fit(pairs, start.adapter, folder.path, bar.advance)
        files = [f"adapter/{file.name}" for file in (folder.path / "adapter").iterdir()]
        folder.seal(stage, counts, [*files, "metrics.jsonl"])

    def _records(
        self,
        name: str,
        kind: type[R],
        *,
        settings: Mapping[str, Any],
        version: str,
        items: Callable[[], Iterable[tuple[str, Any]]],
        work: Callable[[], Work],
        total: int,
        unit: str,
        data: str,
        inputs: Mapping[str, str | None] | None = None,
        model: str = "",
        most: int | None = None,
        why_least: str = "the stage gave nothing",
    ) -> Records[R]:
        """One stage from records to records: noted when planning, else done if it is not yet.

        `total` inputs give one record each, or at most `most` records together.
        """
        amount = f"{total} {unit}" if most is None else f"at most {most} records"
        stage = self._stage(name, settings, version, inputs or {}, why_least)
        folder = self._folder(name)
        state = self._note(stage, folder, model, data, amount)
        if not self.planning and self._must_run(stage, folder):
            with self.progress.stage(stage.name, total, unit) as bar:
                run_stage(folder, stage, items(), work(), bar.advance)
        if self.planning:  # counts as if nothing were there: a plan is the same at every start
            known = folder.content_hash() if state == "done" else None
            return Records(stage.name, kind, folder, known, total if most is None else most)
        (folder.path / JOURNAL).unlink(missing_ok=True)
        return Records(stage.name, kind, folder, folder.content_hash(), folder.count())

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

    def _note(self, stage: Stage, folder: StageFolder, model: str, data: str, amount: str) -> str:
        state = self._planned_state(stage, folder) if self.planning else ""
        self.plan.append(Step(stage.name, model, data, amount, state))
        return state

    def _planned_state(self, stage: Stage, folder: StageFolder) -> str:
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

    def _stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        version: str,
        inputs: Mapping[str, str | None],
        why_least: str = "",
    ) -> Stage:
        known = {key: UNKNOWN if value is None else value for key, value in inputs.items()}
        full = f"round_{self.round:02d}/{name}"
        return Stage(full, version, settings, known, why_least=why_least)

    def _folder(self, name: str) -> StageFolder:
        return StageFolder(self.workdir / f"round_{self.round:02d}" / name)

    def _task_settings(self) -> dict[str, Any]:
        return {
            "task": self.config.task.name,
            "args": self.config.task.args.to_dict(),
            "seed": self.config.seed,
        }

    def _generation(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        compute = self.config.compute
        return dict(settings) | {"dtype": compute.dtype, "max_length": compute.max_length}

    def _keep(self, policy: Policy) -> Policy:
        self.policies.append(policy)
        self._remember(self)
        return policy


def _tidy(folder: Path) -> None:
    """Removes what only an unfinished training needs: checkpoints, half-written adapters."""
    for leftover in [folder / "checkpoints", *folder.glob(".adapter.*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    (folder / "begun.json").unlink(missing_ok=True)


class Group(NamedTuple):
    """The judged samples of one prompt."""

    prompt_id: str
    judged: list[tuple[Sample, Verdict]]


def _judged_groups(
    prompts: Iterable[Prompt], samples: Iterable[Sample], verdicts: Iterable[Verdict]
) -> Iterator[tuple[str, tuple[Prompt, list[tuple[Sample, Verdict]]]]]:
    """(prompt id, (prompt, its samples with their verdicts)), joined by id."""
    judged = join(samples, verdicts, "id", "sample_id")
    by_prompt = groupby(judged, key=lambda pair: pair[0].prompt_id)
    groups = (Group(prompt_id, list(members)) for prompt_id, members in by_prompt)
    for group, prompt in join(groups, prompts, "prompt_id", "id"):
        yield prompt.id, (prompt, group.judged)
