"""Verified self-improvement: learn to prefer one's own right answers to one's own wrong ones.

The shortest member of the family (rejection sampling on a rule's verdict, as in STaR, with the
preference loss of Rafailov et al., 2023, arXiv:2305.18290, instead of imitation): no teacher, no
judge, no reference answer is shown to the model; the only signal is whether its answer is right.
"""

from functools import partial
from typing import Any

from selfevo_jax.evolve.pairs import right_against_wrong
from selfevo_jax.evolve.run import Pair, Run, question, rounds, sampling

NOTHING = (
    "no prompt has both a right and a wrong sample, so there is nothing to learn from; "
    "choose an easier or harder task, or raise sample.n or prompts.n"
)


def defaults() -> dict[str, Any]:
    """This method's own settings."""
    return {
        **rounds(),
        "sample": sampling(n=8),  # completions per prompt
        "pair": {"per_prompt": 2},  # at most this many pairs of one prompt
    }


def verified(run: Run) -> None:
    """Rounds of sample, verify, pair, train, evaluate; each round starts from the last policy."""
    best = partial(right_against_wrong, limit=run.config.pair.per_prompt)
    policy = run.base()
    run.evaluate(policy)
    for _ in run.rounds():
        prompts = run.prompts()
        samples = run.ask("sample", prompts, policy, question, run.config.sample)
        verdicts = run.check(samples, prompts)
        judged = samples.join(verdicts).groups().join(prompts)
        most = run.config.pair.per_prompt
        pairs = run.map("pair", judged, best, Pair, most=most, why=NOTHING)
        policy = run.train(pairs, start=policy)
        run.evaluate(policy)
