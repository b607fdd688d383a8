"""Stages in which a model or the task itself takes part: asking, judging, marking, training.

Whatever a stage depends on is in its key: code, settings, the content of its inputs, the policy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import FrozenConfigDict

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.task import Split, Task
from selfevo_jax.evolve import acquire, embedding, uncertainty, work
from selfevo_jax.evolve.backend import Backend
from selfevo_jax.evolve.engine import Recipe
from selfevo_jax.evolve.keys import code_key, source_version
from selfevo_jax.evolve.overlap import tell_overlap
from selfevo_jax.evolve.plan import Bill
from selfevo_jax.evolve.policy import Policy, Role
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.pure import PureStages, inputs_of, with_given
from selfevo_jax.evolve.settings import Messages
from selfevo_jax.evolve.stages import Work
from selfevo_jax.evolve.training import Fitting, training_of
from selfevo_jax.evolve.views import Records, View
from selfevo_jax.judge import asking as judge_asking
from selfevo_jax.judge import material, pairwise
from selfevo_jax.judge.pairwise import Comparison, Contest, PairwiseJudge
from selfevo_jax.models import merge
from selfevo_jax.parallel.distributed import first
from selfevo_jax.records import Answer, Prompt, Row, Sample, Vector, Verdict, content_id
from selfevo_jax.sample.protocol import Generator, SamplingParams
from selfevo_jax.text.prompt_files import PromptFile

ORDERS = 2  # in which a judge sees two outputs


class Need(NamedTuple):
    """How many different questions of a split a stage counts on: `own`, and those before them."""

    total: int
    own: int
    stage: str


class ModelStages(PureStages):
    """`PureStages` with a configuration, a task and models.

    `remember` is called whenever there is a new policy, or another one is the best so far. `needs`
    has, of every split that questions are drawn from, the first stage that needs the most; `bills`,
    by role, what the stages to be done may ask of models on servers.
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
        remember: Callable[[Any], None] = lambda run: None,
    ) -> None:
        super().__init__(workdir, progress, planning=planning)
        self.config, self.task, self.backend = config, task, backend
        self._remember = remember
        self.policies: list[Policy] = []
        self.best: Policy | None = None
        self.tables: list[Records[Row]] = []
        self.needs: dict[Split, Need] = {}
        self.bills: dict[str, Bill] = {}

    def setting(self, name: str) -> Any:
        """The value of a dotted setting."""
        return reduce(lambda node, part: node[part], name.split("."), self.config)

    def check_given(self, name: str, what: str) -> None:
        """Refuses a dotted setting that is empty. Raises UserError that says `what` it can be."""
        if not self.setting(name):
            raise UserError(f"--config.{name} is not given: it must be {what}")

    @property
    def learns_pairs(self) -> bool:
        """Whether the objective of `config.objective` is one of chosen and rejected completions."""
        return training_of(self.config).objective.pairs

    def base(self) -> Policy:
        """The policy that the run starts from: the base model without an adapter."""
        return self._keep(Policy("base", self.backend.hash))

    def role(self, name: str, otherwise: Policy | None = None) -> Policy:
        """Who plays the role of `config.roles.NAME`; `otherwise`, where no model is bound to it.

        Raises UserError where none is bound and nobody else may play it.
        """
        role = Role(**self.config.roles[name].to_dict())
        if not role.bound:
            if otherwise is None:
                raise UserError(
                    f"--config.roles.{name}.model is not given, and the settings ask for a {name}: "
                    f"name its model, or say --config.roles.{name}.model={self.config.model} for "
                    "the run's own base"
                )
            return otherwise
        return self._keep(Policy(name, self.backend.role_hash(role), role=role))

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
                self._generator(policy), policy.name, seed, params,
                with_given(messages, given), prefix,
            ),
            total=rows.count * number,
            unit="replies",
            data=f"{rows.name} x {number}",
            model=policy.name,
        )  # fmt: skip
        replies = self.records(
            name, Sample, recipe,
            settings=settings,
            version=f"{work.SAMPLER_VERSION}/{code_key(messages)}",
            inputs=inputs_of(rows, given) | {"policy": policy.hash},
        )  # fmt: skip
        self._bill(policy, recipe.total, params.max_new_tokens)
        return replies

    def embed(
        self, name: str, rows: View, policy: Policy, text: Callable[[Any], str]
    ) -> Records[Vector]:
        """The embedding of `text(row)` by `policy` of every row; `source_id` is the row's id."""
        size = embedding.CHUNK

        recipe = Recipe(
            items=lambda: _chunks(((name, text(row)) for name, row in rows.read()), size),
            work=lambda: work.embedded(
                self.meter.embedder(self.backend.embedder(policy), self.backend.tokenizer(policy)),
                policy.name,
            ),
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
            work=lambda: work.weighed(
                self.meter.weigher(self.backend.weigher(policy), self.backend.tokenizer(policy))
            ),
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

    def score(self, name: str, rows: View, policy: Policy) -> Records[Row]:
        """How likely `policy` finds each reply in rows (reply, prompt), as it was asked for there.

        A Row's values are `logp`, the summed log-probability, and `tokens`, how many these are;
        the end of the turn counts where the reply came to it. `source_id` is the reply's id.
        """
        recipe = Recipe(
            items=rows.read,
            work=lambda: work.scored(self._generator(policy)),
            total=rows.count,
            unit="replies",
            data=rows.name,
            model=policy.name,
        )
        return self.records(
            name, Row, recipe,
            settings=self._generation({}),
            version=work.SCORER_VERSION,
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
            work=lambda: work.judged(self._judge(policy, prompt, margin), contest),
            total=rows.count,
            unit="contests",
            data=rows.name,
            model=policy.name,
        )
        code = source_version(pairwise, judge_asking, material)
        comparisons = self.records(
            name, Comparison, recipe,
            settings=self._generation({"protocol": prompt.hash, "margin": margin}),
            version=f"{work.SAMPLER_VERSION}/{code}/{code_key(contest)}",
            inputs=rows.inputs | {"policy": policy.hash},
        )  # fmt: skip
        said = judge_asking.reasoning_tokens(prompt) + judge_asking.VERDICT_TOKENS
        self._bill(policy, ORDERS * recipe.total, said)
        return comparisons

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

    def evaluate(
        self,
        policy: Policy,
        *,
        name: str = "evaluate",
        split: Split = "test",
        n: int | None = None,
    ) -> Records[Answer]:
        """Greedy answers of `policy` to `n` (`evaluate.n`) questions of a split, marked.

        They are always the same ones, of which none is in the training split. With the setting
        `weigh_letters`, where a method has it, the questions are multiple choice, and the likeliest
        of the letters that they show is the answer.
        """
        settings = self.config.evaluate.to_dict()
        number = n or settings["n"]
        del settings["n"]
        params, seed = SamplingParams(temperature=0.0, **settings), self.config.seed
        prompts = partial(self.task.prompts, split, number, seed)
        self._need(name, split, 0, number)
        recipe = Recipe(
            items=lambda: ((prompt.id, prompt) for prompt in prompts()),
            work=lambda: self._answering(policy, params),
            total=number,
            unit="answers",
            data=f"{self.task.name} {split}",
            model=policy.name,
        )
        asked = {"n": number, "split": split} | ({"weigh_letters": True} if self._weighs else {})
        return self.records(
            name, Answer, recipe,
            settings=self._generation(settings) | self._task_settings() | asked,
            version=f"{work.task_version(self.task)}/{work.SAMPLER_VERSION}",
            inputs=self.task.inputs() | {"policy": policy.hash},
            measuring=split == "test",
        )  # fmt: skip

    def _fitted(
        self,
        examples: View,
        start: Policy,
        reference: Policy,
        objective: Mapping[str, Any] | None,
        learn: Mapping[str, Any] | None,
        name: str,
        carry: bool,
    ) -> Policy:
        """See `Run.train`."""
        training = training_of(self.config, objective, learn)
        amount = training.fit.steps or f"{training.fit.epochs} epochs"
        frozen = f", reference {reference.name}" if training.objective.needs_reference else ""

        def make(path: Path, advance: Callable[[int, str], None]) -> dict[str, int]:
            if first():
                questions = (self.config.evaluate.n, self.config.seed)
                tell_overlap(examples, self.task, *questions, path, self.progress)
            store = self.workdir / "reference"
            fitting = Fitting(training, start, reference, path, store, carry)
            return self.backend.fit(examples, fitting, advance)

        folder, content = self.files(
            name,
            make,
            settings=self.backend.train_settings(training) | ({"carry": True} if carry else {}),
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

    def _merged(self, policies: Sequence[Policy], how: str, density: float, name: str) -> Policy:
        """See `Run.merge`."""
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
        adapter = folder / "adapter"
        return self._best(Policy(self.branch + policy, known, adapter, start.name))

    def _best(self, policy: Policy) -> Policy:
        """The policy, which is now what the run stands for."""
        self.best = policy
        if policy in self.policies:
            self._remember(self)
        return self._keep(policy)

    def _questions(self, name: str, split: Split, first: int, number: int) -> Records[Prompt]:
        drawn = partial(self.task.prompts, split, first + number, self.config.seed)
        self._need(name, split, first, number)
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
            inputs=self.task.inputs(),
            measuring=split == "test",
        )  # fmt: skip

    def _bill(self, policy: Policy, replies: int, tokens: int) -> None:
        """Notes what the stage just named may ask of a model on a server, unless it is done."""
        remote = policy.role is not None and policy.role.remote is not None
        if remote and self.plan[-1].state != "done":
            self.bills[policy.name] = self.bills.get(policy.name, Bill()).plus(replies, tokens)

    def _need(self, name: str, split: Split, first: int, number: int) -> None:
        stage = f"round_{self.round:02d}/{self.branch}{name}"
        need = Need(first + number, number, stage)
        self.needs[split] = max(self.needs.get(split, need), need, key=lambda one: one.total)

    @property
    def _weighs(self) -> bool:
        return self.config.get("weigh_letters", False)

    def _answering(self, policy: Policy, params: SamplingParams) -> Work:
        generator = self._generator(policy)
        if not self._weighs:
            return work.answered(generator, policy.name, self.task, params)
        begin = "" if self.backend.tokenizer(policy).chat else "\n"
        return work.lettered(generator, policy.name, self.task, begin)

    def _generator(self, policy: Policy) -> Generator:
        """The engine of a policy, watched by the meter."""
        return self.meter.generator(self.backend.generator(policy), self.backend.tokenizer(policy))

    def _judge(self, policy: Policy, prompt: PromptFile, margin: float) -> PairwiseJudge:
        """A policy as a judge, watched by the meter."""
        judge = self.backend.judge(policy)
        watched = self.meter.generator(judge.generator, judge.tokenizer)
        return PairwiseJudge(replace(judge, generator=watched), prompt, margin)

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
