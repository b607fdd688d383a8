"""The run as a method sees it: rounds, policies, and a handful of ways to make a stage.

    prompts, held_out   questions              ask       a policy's replies to messages
    map, gather         pure functions         check     the task's own verdict on replies
    embed               sentence embeddings    train     a new policy from pairs or examples
    read                a file of records      merge     a policy from several adapters
    judge               which of two replies   table     what a method concludes, shown at the end
    evaluate            held-out accuracy      role      another model than the one that is trained

Every call names one stage of the current round, reads views (records alone or joined by id) and
gives records. Nothing is computed twice; whatever a stage depends on is in its key.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from itertools import count, islice
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from selfevo_jax.evaluate.task import Task, check_choice
from selfevo_jax.evolve import acquire, embedding, uncertainty, work
from selfevo_jax.evolve.backend import Backend
from selfevo_jax.evolve.engine import Recipe
from selfevo_jax.evolve.keys import code_key, source_version
from selfevo_jax.evolve.policy import Policy, Role, role_defaults
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.pure import PureStages, inputs_of, with_given
from selfevo_jax.evolve.settings import Messages, prompt_file, question, rounds, sampling
from selfevo_jax.evolve.training import training_of
from selfevo_jax.evolve.views import Records, View, together
from selfevo_jax.judge import asking as judge_asking
from selfevo_jax.judge import material, pairwise
from selfevo_jax.judge.pairwise import Comparison, Contest, PairwiseJudge
from selfevo_jax.models import merge
from selfevo_jax.records import (
    Answer,
    Example,
    Pair,
    Prompt,
    Record,
    Row,
    Sample,
    Vector,
    Verdict,
    content_id,
)
from selfevo_jax.sample.protocol import SamplingParams

__all__ = [
    "Answer", "Comparison", "Contest", "Example", "Pair", "Policy", "Prompt", "Record", "Records",
    "Row", "Run", "Sample", "Vector", "Verdict", "View", "prompt_file", "question",
    "role_defaults", "rounds", "sampling", "together",
]  # fmt: skip


class Run(PureStages):
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
        super().__init__(workdir, progress, planning=planning)
        self.config, self.task, self.backend = config, task, backend
        self._remember = remember
        self.policies: list[Policy] = []
        self.tables: list[Records[Row]] = []

    def setting(self, name: str) -> Any:
        """The value of a dotted setting."""
        return reduce(lambda node, part: node[part], name.split("."), self.config)

    def check_choices(self, setting: str, values: Iterable[str], known: Sequence[str]) -> None:
        """Refuses a value of a setting that is not among the known ones. Raises UserError."""
        for value in values:
            check_choice(value, known, setting)

    def base(self) -> Policy:
        """The policy that the run starts from: the base model without an adapter."""
        return self._keep(Policy("base", self.backend.hash))

    def role(self, name: str, otherwise: Policy) -> Policy:
        """Who plays the role of `config.roles.NAME`; `otherwise`, where no model is bound to it."""
        role = Role(**self.config.roles[name].to_dict())
        if not role.bound:
            return otherwise
        return self._keep(Policy(name, self.backend.role_hash(role), role=role))

    def rounds(self, most: int | None = None) -> Iterator[int]:
        """The numbers of the rounds, from 1; stages asked for in between belong to that round."""
        for number in range(1, (most or self.config.rounds) + 1):
            self.round = number
            yield number

    def prompts(self, n: int | None = None, *, name: str = "prompts") -> Records[Prompt]:
        """This round's training prompts: `n` (`prompts.n`) that no other round uses."""
        number = n or self.config.prompts.n
        return self._questions(name, "train", max(self.round - 1, 0) * number, number)

    def held_out(self, n: int | None = None, *, name: str = "held_out") -> Records[Prompt]:
        """The held-out prompts that `evaluate` asks, for a method that asks them in its own way."""
        return self._questions(name, "test", 0, n or self.config.evaluate.n)

    def ask(
        self,
        name: str,
        rows: View,
        policy: Policy,
        messages: Callable[..., Messages],
        how: Mapping[str, Any],
        *,
        given: View | None = None,
        prefix: str = "",
    ) -> Records[Sample]:
        """What `policy` replies to `messages(row)`, `how.n` times for each row.

        `how` is a section as made by `sampling`. With `given`, messages are `messages(row, given)`,
        where `given` are all records of that stage. `prefix` begins every reply and is not in its
        text. A reply's `parent_id` is the id of the row.
        """
        settings = dict(how)
        number = settings.pop("n")
        params, seed = SamplingParams(**settings), self.config.seed
        settings = self._generation(settings) | {"n": number, "seed": seed, "prefix": prefix}
        recipe = Recipe(
            items=lambda: work.draws(rows.read(), number),
            work=lambda: work.asked(
                self.backend.generator(policy), policy.name, seed, params,
                with_given(messages, given), prefix,
            ),
            total=rows.count * number,
            unit="replies",
            data=f"{rows.name} x {number}",
            model=policy.name,
        )  # fmt: skip
        return self.records(
            name, Sample, recipe,
            settings=settings,
            version=f"{work.SAMPLER_VERSION}/{code_key(messages)}",
            inputs=inputs_of(rows, given) | {"policy": policy.hash},
        )  # fmt: skip

    def embed(
        self, name: str, rows: View, policy: Policy, text: Callable[[Any], str]
    ) -> Records[Vector]:
        """The embedding of `text(row)` by `policy` of every row; `source_id` is the row's id."""
        size = embedding.CHUNK

        recipe = Recipe(
            items=lambda: _chunks(((name, text(row)) for name, row in rows.read()), size),
            work=lambda: work.embedded(self.backend.embedder(policy), policy.name),
            total=-(-rows.count // size),
            unit=f"chunks of {size} texts",
            data=rows.name,
            model=policy.name,
            most=rows.count,
        )
        return self.records(
            name, Vector, recipe,
            settings=self._generation({}),
            version=f"{work.EMBEDDER_VERSION}/{code_key(text)}",
            inputs=inputs_of(rows) | {"policy": policy.hash},
        )  # fmt: skip

    def uncertainty(self, name: str, rows: View, policy: Policy) -> Records[Row]:
        """How unsure `policy` is of each reply in rows (reply, prompt): see `acquire.statistics`.

        The reply is taken as the answer to the prompt's own messages; `source_id` is its id.
        """
        size = uncertainty.ROWS
        recipe = Recipe(
            items=lambda: _chunks(iter(rows), size),
            work=lambda: work.weighed(self.backend.weigher(policy)),
            total=-(-rows.count // size),
            unit=f"chunks of {size} replies",
            data=rows.name,
            model=policy.name,
            most=rows.count,
        )
        return self.records(
            name, Row, recipe,
            settings=self._generation({}),
            version=source_version(uncertainty) + code_key(acquire.statistics),
            inputs=rows.inputs | {"policy": policy.hash},
        )  # fmt: skip

    def judge(
        self,
        name: str,
        rows: View,
        policy: Policy,
        contest: Callable[[Any], Contest],
        *,
        protocol: str = "base",
        margin: float = 0.0,
    ) -> Records[Comparison]:
        """What `policy` says, asked in both orders, of the two outputs in `contest(row)`.

        `protocol` and `margin`: see `selfevo_jax.judge.pairwise`. `item_id` is the id of the row.
        """
        prompt = pairwise.protocol(protocol)
        recipe = Recipe(
            items=rows.read,
            work=lambda: work.judged(
                PairwiseJudge(self.backend.judge(policy), prompt, margin), contest
            ),
            total=rows.count,
            unit="contests",
            data=rows.name,
            model=policy.name,
        )
        code = source_version(pairwise, judge_asking, material)
        return self.records(
            name, Comparison, recipe,
            settings=self._generation({"protocol": prompt.hash, "margin": margin}),
            version=f"{work.SAMPLER_VERSION}/{code}/{code_key(contest)}",
            inputs=rows.inputs | {"policy": policy.hash},
        )  # fmt: skip

    def check(
        self, samples: Records[Sample], prompts: Records[Prompt], *, name: str = "check"
    ) -> Records[Verdict]:
        """The task's own verdict on each sample."""
        rows = samples.join(prompts)
        recipe = Recipe(
            items=rows.read,
            work=lambda: work.checked(self.task),
            total=samples.count,
            unit="verdicts",
            data=samples.name,
        )
        return self.records(
            name, Verdict, recipe,
            settings=self._task_settings(),
            version=work.task_version(self.task),
            inputs=rows.inputs,
        )  # fmt: skip

    def evaluate(self, policy: Policy, *, name: str = "evaluate") -> Records[Answer]:
        """Greedy answers of `policy` to the held-out prompts, always the same ones, marked."""
        settings = self.config.evaluate.to_dict()
        number = settings.pop("n")
        params, seed = SamplingParams(temperature=0.0, **settings), self.config.seed
        prompts = partial(self.task.prompts, "test", number, seed)
        recipe = Recipe(
            items=lambda: ((prompt.id, prompt) for prompt in prompts()),
            work=lambda: work.answered(
                self.backend.generator(policy), policy.name, self.task, params
            ),
            total=number,
            unit="answers",
            data=f"{self.task.name} test",
            model=policy.name,
        )
        return self.records(
            name, Answer, recipe,
            settings=self._generation(settings) | self._task_settings() | {"n": number},
            version=f"{work.task_version(self.task)}/{work.SAMPLER_VERSION}",
            inputs=work.task_inputs(self.task) | {"policy": policy.hash},
        )  # fmt: skip

    def train(
        self,
        examples: View,
        start: Policy,
        *,
        reference: Policy | None = None,
        objective: Mapping[str, Any] | None = None,
        learn: Mapping[str, Any] | None = None,
        name: str = "train",
    ) -> Policy:
        """A new policy: `start` trained on Pairs or Examples, `reference` (`start`) kept frozen.

        `objective` and `learn` change settings of the run for this stage alone.
        """
        reference = reference or start
        training = training_of(self.config, objective, learn)
        amount = training.fit.steps or f"{training.fit.epochs} epochs"
        frozen = f", reference {reference.name}" if training.objective.needs_reference else ""
        folder, content = self.files(
            name,
            lambda path, advance: self.backend.fit(
                examples, training, start, reference, path, self.workdir / "reference", advance
            ),
            settings=self.backend.train_settings(training),
            version=self.backend.trainer_version,
            inputs={
                **examples.inputs,
                "start": start.hash,
                "reference": reference.hash,
                "base": self.backend.hash,
            },
            model=f"start {start.name}{frozen}",
            data=examples.name,
            amount=f"at most {examples.count} examples x {amount}",
        )
        return self._trained(name, folder, content, start)

    def merge(
        self,
        policies: Sequence[Policy],
        *,
        how: str = "ties",
        density: float = 0.2,
        name: str = "merge",
    ) -> Policy:
        """The base with the adapters of several policies merged; see `selfevo_jax.models.merge`."""
        folder, content = self.files(
            name,
            lambda path, advance: self.backend.merge(policies, how, density, path),
            settings={"how": how, "density": density, "seed": self.config.seed},
            version=source_version(merge),
            inputs={policy.name: policy.hash for policy in policies},
            model="base",
            data=", ".join(policy.name for policy in policies),
            amount=f"{len(policies)} adapters",
        )
        return self._trained(name, folder, content, policies[-1])

    def _trained(self, name: str, folder: Path, content: str | None, start: Policy) -> Policy:
        known = None if content is None or start.hash is None else content_id(start.hash, content)
        own = "" if name == "train" else f".{name}"
        policy = f"round_{self.round:02d}{own}"
        return self._keep(Policy(self.branch + policy, known, folder / "adapter", start.name))

    def _questions(self, name: str, split: Any, first: int, number: int) -> Records[Prompt]:
        drawn = partial(self.task.prompts, split, first + number, self.config.seed)
        recipe = Recipe(
            items=lambda: ((prompt.id, prompt) for prompt in islice(drawn(), first, None)),
            work=lambda: work.each(lambda prompt: [prompt]),
            total=number,
            unit="prompts",
            data=f"{self.task.name} {split}",
        )
        return self.records(
            name, Prompt, recipe,
            settings=self._task_settings() | {"split": split, "first": first, "n": number},
            version=work.task_version(self.task),
            inputs=work.task_inputs(self.task),
        )  # fmt: skip

    def _task_settings(self) -> dict[str, Any]:
        return {
            "task": self.config.task.name,
            "args": self.config.task.args.to_dict(),
            "seed": self.config.seed,
        }

    def _generation(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        compute = self.config.compute
        computed = {"dtype": compute.dtype, "max_length": compute.max_length}
        return dict(settings) | computed | {"backend": self.config.backend}

    def _keep(self, policy: Policy) -> Policy:
        if policy not in self.policies:
            self.policies.append(policy)
            self._remember(self)
        return policy


def _chunks(rows: Iterator[Any], size: int) -> Iterator[tuple[str, list[Any]]]:
    """(number, rows) in chunks."""
    for number in count():
        chunk = list(islice(rows, size))
        if not chunk:
            return
        yield str(number), chunk
