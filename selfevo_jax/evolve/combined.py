"""RefEval with stages of other methods: which prompts it samples, and where candidates come from.

Two things that RefEval leaves to chance can be chosen. `prompts_by`: each round's prompts are those
of a pool that active selection would have answered next, by the policy as it is by then. And
`candidates`: beside its samples, the policy's answers after reflecting on answers that were wrong
(ReflectEvo). Judging, pairs, DPO over a grid of betas and its choice are RefEval's own.
"""

from typing import Any

from selfevo_jax.evolve import refeval
from selfevo_jax.evolve.acquire import STRATEGIES
from selfevo_jax.evolve.active import acquired, pool_of
from selfevo_jax.evolve.contests import by_question
from selfevo_jax.evolve.curation import revision
from selfevo_jax.evolve.reflectevo import reflected
from selfevo_jax.evolve.reflection import KEYS
from selfevo_jax.evolve.run import (
    Policy,
    Prompt,
    Records,
    Row,
    Run,
    Sample,
    View,
    question,
    sampling,
    together,
)
from selfevo_jax.evolve.tables import accuracy

CANDIDATES = ("samples", "reflection")


def defaults() -> dict[str, Any]:
    """This method's own settings: RefEval's without imitation, and those of the borrowed stages."""
    own = refeval.defaults()
    for unused in ("judges", "sft", "arena"):
        del own[unused]
    del own["roles"]["arena"]
    return own | {
        "judge": "refeval",  # of refeval.JUDGES
        "prompts_by": "entropy",  # of acquire.STRATEGIES; all: prompts that no round shares
        "candidates": "samples",  # samples | reflection: answers after reflection beside them
        "pool": {"n": 1000, "most_similar": 1.0, "per_answer": 2, "instructions": KEYS},
        "acquire": {"similarity_by": "base", "spread": 1},
        "reply": sampling(temperature=0.0, max_new_tokens=64),  # what uncertainty is read from
        "answer": sampling(temperature=0.0, max_new_tokens=512),  # what is reflected on
        "reflect": sampling(temperature=0.8, max_new_tokens=200),
        "revise": sampling(temperature=0.0, max_new_tokens=512),
        "show_attempt": True,
    }


def combined(run: Run) -> Policy:
    """Rounds of choosing prompts, candidates, scores, preference and evaluation."""
    c = run.config
    run.check_choices("judge", [c.judge], refeval.JUDGES)
    run.check_choices("prompts_by", [c.prompts_by], ("all", *STRATEGIES))
    run.check_choices("candidates", [c.candidates], CANDIDATES)
    run.check_choices("acquire.similarity_by", [c.acquire.similarity_by], ("base", "policy"))
    refeval.check_settings(run)
    if c.prompts_by != "all":
        run.check_between("pool.n", c.rounds * c.prompts.n)  # no question is taken twice
    policy = base = run.base()
    evaluated, used = [run.evaluate(base)], list[View]()
    pool = None if c.prompts_by == "all" else pool_of(run, base)
    for _ in run.rounds():
        prompts = run.prompts() if pool is None else picked(run, pool, base, policy, used)
        references = refeval.referred(run, prompts, base)
        samples = run.ask("sample", prompts, policy, question, c.sample)
        used.append(samples)
        if c.candidates == "reflection":
            samples = with_revisions(run, samples, prompts, policy)
        samples = refeval.competing(run, run.band(samples, prompts), prompts, base, policy)
        scores = refeval.scored(run, c.judge, policy, samples, prompts, references)
        policy = refeval.improved(run, policy, samples.join(prompts), scores)
        evaluated.append(run.evaluate(policy))
    run.table("table", together(evaluated), accuracy)
    return policy


def picked(
    run: Run, pool: Records[Prompt], base: Policy, policy: Policy, used: list[View]
) -> Records[Prompt]:
    """The prompts of the pool that are to be sampled next; none that was before."""
    c, before = run.config, together(used) if used else None
    chosen = acquired(run, pool, base, policy, before, c.prompts_by, c.prompts.n)
    return run.map("prompts", chosen.join(pool, key="source_id"), chosen_prompt, Prompt)


def chosen_prompt(row: tuple[Row, Prompt]) -> list[Prompt]:
    """The prompt that a line of the selection log names."""
    return [row[1]]


def with_revisions(
    run: Run, samples: Records[Sample], prompts: Records[Prompt], policy: Policy
) -> Records[Sample]:
    """The samples, and the policy's answers after its reflections on wrong ones, if any were."""
    with run.within("reflection"):
        stories = reflected(run, prompts, policy, policy)
    if not stories.count:
        return samples
    revisions = run.map("revisions", stories, revision, Sample)
    return run.gather("candidates", together([samples, revisions]), by_question, Sample)
