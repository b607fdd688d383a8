"""Verified self-improvement: learn to prefer one's own right answers to one's own wrong ones.

The shortest member of the family (rejection sampling on a rule's verdict, as in STaR, with the
preference loss of Rafailov et al., 2023, arXiv:2305.18290, instead of imitation): no teacher, no
judge, no reference answer is shown to the model; the only signal is whether its answer is right.
"""

from functools import partial
from typing import Any

from selfevo_jax.evolve.pairs import right_against_older_wrong, right_against_wrong
from selfevo_jax.evolve.run import Pair, Policy, Run, banding, question, rounds, sampling

NOTHING = (
    "no prompt has both a right and a wrong sample, so there is nothing to learn from; "
    "choose an easier or harder task, or raise sample.n or prompts.n"
)


def defaults() -> dict[str, Any]:
    """This method's own settings."""
    return {
        **rounds(),
        **banding(),
        "sample": sampling(n=8),  # completions per prompt
        "pair": {
            "per_prompt": 2,  # at most this many pairs of one prompt
            "rejected_by": "policy",  # whose wrong samples: policy | base (as it was in round 0)
        },
    }


def verified(run: Run) -> Policy:
    """Rounds of sample, verify, pair, train, evaluate; each round starts from the last policy."""
    c = run.config
    run.check_choices("pair.rejected_by", [c.pair.rejected_by], ("policy", "base"))
    best = partial(right_against_wrong, limit=c.pair.per_prompt)
    best_over_older = partial(right_against_older_wrong, limit=c.pair.per_prompt)
    policy = base = run.base()
    run.evaluate(policy)
    for _ in run.rounds():
        prompts = run.prompts()
        samples = run.band(run.ask("sample", prompts, policy, question, c.sample), prompts)
        judged = samples.join(run.check(samples, prompts)).groups().join(prompts)
        if c.pair.rejected_by == "base":
            drawn = run.ask("sample_base", prompts, base, question, c.sample)
            older = drawn.join(run.check(drawn, prompts, name="check_base"))
            pairs = run.gather("pair", judged, best_over_older, Pair, given=older, why=NOTHING)
        else:
            pairs = run.map("pair", judged, best, Pair, most=c.pair.per_prompt, why=NOTHING)
        policy = run.accept(run.train(pairs, start=policy), policy)
        run.evaluate(policy)
    return policy
