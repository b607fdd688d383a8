"""The run as a method sees it: rounds, policies, and a handful of ways to make a stage.

    prompts, held_out   questions              ask       a policy's replies to messages
    map, gather         pure functions         check     the task's own verdict on replies
    embed, score        embeddings, log-probs  train     a new policy from pairs or examples
    read                a file of records      merge     a policy from several adapters
    judge               which of two replies   table     what a method concludes, shown at the end
    evaluate            held-out accuracy      role      another model than the one that is trained
    band, probed        prompts worth asking   accept    a new policy, or back to the best one
    validation          questions to choose by choose    the best of several policies

Every call names one stage of the current round, reads views (records alone or joined by id) and
gives records. Nothing is computed twice; whatever a stage depends on is in its key.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.task import check_choice
from selfevo_jax.evolve import decisions, gauges
from selfevo_jax.evolve.model_stages import ModelStages
from selfevo_jax.evolve.policy import Policy, role_defaults
from selfevo_jax.evolve.settings import (
    accepting,
    banding,
    probing,
    prompt_file,
    question,
    rounds,
    sampling,
)
from selfevo_jax.evolve.views import Records, View, together
from selfevo_jax.judge.pairwise import Comparison, Contest
from selfevo_jax.records import (
    Answer,
    DataRow,
    Example,
    Pair,
    Prompt,
    Record,
    Row,
    Sample,
    Vector,
    Verdict,
)
from selfevo_jax.text.data_files import read_jsonl

__all__ = [
    "Answer", "Comparison", "Contest", "DataRow", "Example", "Pair", "Policy", "Prompt", "Record",
    "Records", "Row", "Run", "Sample", "Vector", "Verdict", "View", "accepting", "banding",
    "probing", "prompt_file", "question", "role_defaults", "rounds", "sampling", "together",
]  # fmt: skip

ALL_SOLVED = "every prompt was solved in an earlier round (difficulty.repeat): the rounds end here"


class Run(ModelStages):
    """One run of a method in a workdir. `planning` makes every call only note what it would do.

    `best` is the policy that the run stands for so far: the last that was trained, or that a
    choice or an acceptance left. `decided` says of policies whether they were accepted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stands: dict[str, tuple[Policy, Records[Answer]]] = {}
        self._rates: list[Records[Row]] = []
        self._pools: dict[int, Records[Prompt]] = {}  # by round, where prompts are repeated
        self._gauges: dict[str, Records[Row]] = {}
        self.decided: dict[str, bool] = {}

    def check_choices(self, setting: str, values: Iterable[str], known: Sequence[str]) -> None:
        """Refuses a value of a setting that is not among the known ones. Raises UserError."""
        for value in values:
            check_choice(value, known, setting)

    def check_between(self, setting: str, least: float, most: float = math.inf) -> None:
        """Refuses a setting, or one of several values of it, outside `least` to `most`.

        Raises UserError.
        """
        value = self.setting(setting)
        for one in value if isinstance(value, tuple) else (value,):
            if not least <= one <= most:
                limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise UserError(f"--config.{setting}={value}: {one} must be {limits}")

    def rounds(self, most: int | None = None) -> Iterator[int]:
        """The numbers of the rounds, from 1; stages asked for in between belong to that round.

        They end early where `difficulty.repeat` leaves no prompt for the next one.
        """
        for number in range(1, (most or self.config.rounds) + 1):
            pool = self._pools.get(self.round)
            if pool is not None and not self.planning and not any(True for _ in self._left(pool)):
                self.progress.say(ALL_SOLVED)
                return
            self.round = number
            yield number

    def prompts(self, n: int | None = None, *, name: str = "prompts") -> Records[Prompt]:
        """This round's training prompts: `n` (`prompts.n`) that no other round uses.

        With `difficulty.repeat` they are the same in every round, without those that were solved.
        """
        number = n or self.config.prompts.n
        if not self.config.get("difficulty", {}).get("repeat"):
            return self._questions(name, "train", max(self.round - 1, 0) * number, number)
        pool = self._questions(f"{name}_pool", "train", 0, number)
        self._pools[self.round] = pool
        return self.map(name, self._left(pool), decisions.itself, Prompt)

    def _left(self, pool: Records[Prompt]) -> View:
        """The prompts that were not solved in an earlier round."""
        gone = [rates.where(decisions.solved) for rates in self._rates]
        return pool.without(together(gone), "source_id") if gone else pool

    def check_repeated(self) -> None:
        """Refuses `difficulty.repeat` in a run that draws prompts in one round only.

        It is asked when the plan is whole. Raises UserError.
        """
        if len(self._pools) == 1:
            raise UserError(
                f"--config.difficulty.repeat=True: {self.config.method} draws its prompts once in "
                "this run, so that no later round can leave out those that were solved; it needs "
                "two rounds or more that each draw prompts"
            )

    def held_out(self, n: int | None = None, *, name: str = "held_out") -> Records[Prompt]:
        """The held-out prompts that `evaluate` asks, for a method that asks them in its own way."""
        return self._questions(name, "test", 0, n or self.config.evaluate.n)

    def validation(self, n: int, *, name: str = "validation") -> Records[Prompt]:
        """`n` questions to choose policies by: neither trained on nor reported.

        They are none of those by which a round is accepted: what was chosen on these is judged on
        others.
        """
        accepting = self.config.get("accept", {}).get("questions", 0)
        return self._questions(name, "validation", accepting, n)

    def band(self, samples: Records[Sample], prompts: Records[Prompt]) -> Records[Sample]:
        """The samples of prompts whose share of right ones lies inside `difficulty.between`.

        All of them where that is empty.
        """
        c = self.config.difficulty
        _check_band(c.between)
        if not c.repeat and not c.between:
            return samples
        judged = samples.join(self.check(samples, prompts, name="check_band")).groups()
        if c.repeat:
            self._rates.append(self.map("rate", judged, decisions.pass_rate, Row))
        if not c.between:
            return samples
        low, high = c.between
        middling = partial(decisions.of_middling_difficulty, low=low, high=high)
        why = f"no prompt has a share of right answers between {low} and {high}"
        return self.map("band", judged, middling, Sample, why=why)

    def probed(self, prompts: Records[Prompt], policy: Policy) -> Records[Prompt]:
        """Those of the prompts that `policy` gets right with a share inside `difficulty.between`.

        The share is that of `difficulty.probe.n` replies drawn for this, and for
        `difficulty.repeat`. All where it is empty.
        """
        c = self.config.difficulty
        if not c.between and not c.repeat:
            return prompts
        drawn = self.ask("probe", prompts, policy, question, c.probe)
        middling = self.band(drawn, prompts)
        if not c.between:
            return prompts
        rows = middling.groups().join(prompts)
        return self.map("probed", rows, decisions.prompt_of_group, Prompt)

    def train(
        self,
        examples: View,
        start: Policy,
        *,
        reference: Policy | None = None,
        objective: Mapping[str, Any] | None = None,
        learn: Mapping[str, Any] | None = None,
        name: str = "train",
        carry: bool = False,
        candidate: bool = False,
    ) -> Policy:
        """A new policy: `start` trained on Pairs or Examples, `reference` (`start`) kept frozen.

        `objective` and `learn` change settings of the run for this stage alone. With `carry` the
        optimiser goes on from the state that the training of `start` left, where it did (also with
        `carry`), and its own is kept beside the adapter. The new policy is gauged (`gauges.*`).
        Raises UserError when it has collapsed; but one `candidate` of several is left to `choose`.
        """
        policy = self._fitted(examples, start, reference or start, objective, learn, name, carry)
        return self._gauged(policy, name, candidate)

    def merge(
        self,
        policies: Sequence[Policy],
        *,
        how: str = "ties",
        density: float = 0.2,
        name: str = "merge",
    ) -> Policy:
        """The base with the adapters of several policies merged; see `selfevo_jax.models.merge`.

        It is gauged as one that was trained.
        """
        return self._gauged(self._merged(policies, how, density, name), name)

    def choose(self, policies: Iterable[Policy], values: View, *, name: str = "choose") -> Policy:
        """The policy with the highest `value` in rows whose `source_id` are the policies' names.

        One that has collapsed is left out. Raises UserError when all have.
        """
        self.assert_unseen(values.inputs)
        policies, limits = list(policies), self._limits()
        gauged = [self._gauges[p.name] for p in policies if limits and p.name in self._gauges]
        if gauged:
            least, most = limits["least"], limits["most"]
            rule = partial(decisions.highest_standing, least=least, most=most)
            best = self.gather(name, values, rule, Row, given=together(gauged), most=1)
        else:
            best = self.gather(name, values, decisions.highest, Row, most=1)
        if best.hash is None:
            return self._best(Policy(self.branch + name, None))
        row = next(iter(best))
        for collapsed, why in row.values.get("collapsed", {}).items():
            self.progress.say(f"{collapsed} has collapsed and is left out: {why}")
        chosen = next(policy for policy in policies if policy.name == row.source_id)
        return self._best(self._planned_as(self.branch + name, chosen))

    def accept(self, candidate: Policy, previous: Policy) -> Policy:
        """`candidate`, or the best policy that was accepted before it, on validation questions.

        `accept.questions` of them (0: all candidates are accepted); see
        `decisions.verdict_on_round` for `accept.tolerance` and `accept.lost`.
        """
        c = self.config.accept
        if not c.questions or candidate is previous:
            return candidate
        best, before = self._stands.get(previous.name) or (
            previous, self._validated(previous, "validate_first")
        )  # fmt: skip
        answers = self._validated(candidate, "validate")
        rule = partial(decisions.verdict_on_round, tolerance=c.tolerance, lost_share=c.lost)
        decided = self.gather("accept", together([before, answers]), rule, Row, most=1)
        if decided.hash is None:  # not known yet: the plan goes on as if it were accepted
            candidate = Policy(candidate.name, None, None, candidate.parent)
            self._stands[candidate.name] = candidate, answers
            return candidate
        values = next(iter(decided)).values
        self.decided[candidate.name] = values["accepted"]
        if values["accepted"] and values["score"] >= values["best_score"]:
            best, before = candidate, answers
        following = self._planned_as(candidate.name, candidate if values["accepted"] else best)
        self._stands[following.name] = best, before
        self._best(best)
        return following

    def _planned_as(self, name: str, policy: Policy) -> Policy:
        """The policy; in a plan under a name that does not tell what came of a decision.

        So a plan is the same at every start.
        """
        return replace(policy, name=name) if self.planning else policy

    def _validated(self, policy: Policy, name: str) -> Records[Answer]:
        return self.evaluate(policy, name=name, split="validation", n=self.config.accept.questions)

    def concluded(self, result: Policy | None) -> None:
        """What the method ends with, where that is one policy: it, or a better one before it."""
        self.best = result
        if result is not None:
            self._best(self._stands[result.name][0] if result.name in self._stands else result)

    def _limits(self) -> dict[str, dict[str, float]]:
        """The limits of gauges that are set: `least` and `most` by name; nothing without any."""
        c = self.config.gauges
        given = {
            side: {name: limit for name, limit in c[side].items() if limit is not None}
            for side in ("least", "most")
        }
        return given if any(given.values()) else {}

    def _gauged(self, policy: Policy, name: str, candidate: bool = False) -> Policy:
        if self.config.gauges.questions:
            with self.within(name):
                gauge = self._gauges[policy.name] = self._gauge(policy)
            limits = self._limits()
            if limits and not candidate and not self.planning:
                gauges.refuse_collapse(next(iter(gauge)), **limits)
        return policy

    def _gauge(self, policy: Policy) -> Records[Row]:
        """What replies drawn from a policy, and their likelihood by it and by the base, tell."""
        c, base = self.config.gauges, self.base()
        how = sampling(n=c.n, max_new_tokens=c.max_new_tokens)
        questions = self.validation(c.questions, name="gauge_questions")
        drawn = self.ask("gauge_sample", questions, policy, question, how)
        own = self.score("gauge_own", drawn.join(questions), policy)
        first = self.score("gauge_base", drawn.join(questions), base)
        scored = drawn.join(own, key="id").join(first, key="id")
        row = partial(gauges.gauge_row, policy=policy.name)
        return self.gather("gauge", scored, row, Row, given=_steps(policy), most=1)


def _check_band(between: tuple[float, ...]) -> None:
    """Refuses `difficulty.between` unless it is empty or two shares in order."""
    numbers = all(isinstance(share, int | float) for share in between)
    if between and not (numbers and len(between) == 2 and 0 <= between[0] < between[1] <= 1):
        raise UserError(
            f"--config.difficulty.between={between}: it must be two shares from 0 to 1, the lower "
            "one first, such as (0.1,0.9), or empty"
        )


def _steps(policy: Policy) -> View:
    """What was measured at every step of the training that made a policy."""
    assert policy.adapter is not None
    file = policy.adapter.parent / "metrics.jsonl"

    def read() -> Iterator[tuple[str, Any]]:
        rows = read_jsonl(file) if file.exists() else []  # a merge has no steps
        return ((str(number), row) for number, row in enumerate(rows))

    return View("steps", {"steps": policy.hash}, 1, read)
