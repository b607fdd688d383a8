"""Verified self-improvement: learn to prefer one's own right answers to one's own wrong ones.

The shortest member of the family (rejection sampling on a rule's verdict, as in STaR, with the
preference loss of Rafailov et al., 2023, arXiv:2305.18290, instead of imitation): no teacher, no
judge, no reference answer is shown to the model; the only signal is whether its answer is right.
"""

from selfevo_jax.evolve.run import Run


def verified(run: Run) -> None:
    """Rounds of sample, verify, pair, train, evaluate; each round starts from the last policy."""
    policy = run.base()
    run.evaluate(policy)
    for _ in run.rounds():
        prompts = run.prompts()
        samples = run.sample(prompts, policy)
        verdicts = run.check(samples, prompts)
        pairs = run.pair(prompts, samples, verdicts)
        policy = run.train(pairs, start=policy)
        run.evaluate(policy)
