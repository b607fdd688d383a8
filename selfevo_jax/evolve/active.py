"""Active selection: does retraining while one acquires pick better questions to have answered?

After Bhatt et al., 2024 (arXiv:2401.06692) and its follow-up on retraining iterations. From a pool
of unanswered questions, a budget of B is spent in m equal parts; before each part the questions are
scored with the policy as it is by then, the chosen ones get their answers (the gold answers stand
for the annotator), and the policy is trained on all answers so far. The study is every strategy at
every m, from the same pool, in one run with one table.
"""

from functools import partial
from typing import Any

from selfevo_jax.evolve.acquire import (
    DIVERSITY,
    STRATEGIES,
    by_chance,
    by_diversity,
    by_uncertainty,
    spread_over,
    without_near_copies,
)
from selfevo_jax.evolve.lessons import gold_lesson
from selfevo_jax.evolve.run import (
    Example,
    Policy,
    Prompt,
    Records,
    Row,
    Run,
    View,
    accepting,
    probing,
    question,
    role_defaults,
    sampling,
    together,
)
from selfevo_jax.evolve.tables import study


def defaults() -> dict[str, Any]:
    """This method's own settings."""
    return {
        "pool": {"n": 1000, "most_similar": 1.0},  # near copies above this cosine are left out
        "acquire": {
            "strategies": ("random", "entropy", "confidence"),
            "iterations": (1, 2),  # the paper's m
            "budget": 200,  # answers bought in all, B
            "restart": "warm",  # where each training starts: warm (the last policy) | fresh
            "similarity_by": "base",  # whose embeddings diversity is seen by: base | policy
            "spread": 1,  # so many times the uncertain questions, of which the most different
        },
        "weigh_letters": False,  # multiple choice: the likeliest letter is the answer
        "reply": sampling(n=1, temperature=0.0, max_new_tokens=64),  # what uncertainty is read from
        **accepting(),
        **probing(),
        **role_defaults("encoder"),
    }


def active(run: Run) -> None:
    """Every strategy at every number of iterations, from one pool."""
    c, base = run.config.acquire, run.base()
    run.check_choices("acquire.strategies", c.strategies, STRATEGIES)
    run.check_given("acquire.strategies", f"one or more of {', '.join(STRATEGIES)}")
    run.check_given("acquire.iterations", "one or more numbers of trainings, such as (1,2)")
    run.check_between("acquire.budget", 1)
    run.check_between("acquire.iterations", 1, c.budget)
    run.check_choices("acquire.restart", [c.restart], ("warm", "fresh"))
    run.check_choices("acquire.similarity_by", [c.similarity_by], ("base", "policy"))
    run.check_between("acquire.spread", 1)
    evaluated = [run.evaluate(base)]
    pool = run.probed(pool_of(run, base), base)
    run.check_between("acquire.budget", 1, pool.count)  # no more than the pool has
    for strategy in c.strategies:
        for iterations in c.iterations:
            with run.within(f"{strategy}-{iterations}"):
                evaluated.append(run.evaluate(bought(run, pool, base, strategy, iterations)))
    run.table("table", together(evaluated), study)


def pool_of(run: Run, base: Policy) -> Records[Prompt]:
    """The questions to choose from, without near copies of each other."""
    c = run.config.pool
    pool = run.prompts(c.n, name="pool")
    if c.most_similar >= 1.0:
        return pool
    placed = pool.join(run.embed("embed_pool", pool, run.role("encoder", base), text_of), key="id")
    unlike = partial(without_near_copies, similarity=c.most_similar)
    return run.gather("different", placed, unlike, Prompt)


def bought(run: Run, pool: Records[Prompt], base: Policy, strategy: str, iterations: int) -> Policy:
    """The policy after the whole budget was spent."""
    c, policy = run.config.acquire, base
    labelled: View | None = None
    for part in run.rounds(iterations):
        n = c.budget * part // iterations - c.budget * (part - 1) // iterations
        chosen = acquired(run, pool, base, policy, labelled, strategy, n)
        fresh = run.map("reveal", chosen.join(pool, key="source_id"), revealed, Example)
        labelled = fresh if labelled is None else together([labelled, fresh])
        start = policy if c.restart == "warm" else base
        policy = run.accept(run.train(labelled, start, objective={"loss": "sft"}), policy)
    return policy


def acquired(
    run: Run,
    pool: Records[Prompt],
    base: Policy,
    policy: Policy,
    labelled: View | None,
    strategy: str,
    n: int,
) -> Records[Row]:
    """The next `n` questions to have answered, with the reason: the selection log."""
    free: View = pool if labelled is None else pool.without(labelled, "prompt_id")
    if strategy == "random":
        return run.gather(
            "acquire", free, partial(by_chance, n=n, seed=run.config.seed), Row, most=n
        )
    if strategy in DIVERSITY:
        placed = pool.join(
            run.embed("embed_questions", pool, seer(run, base, policy), text_of), key="id"
        )
        cover = partial(diverse_first if labelled is None else by_diversity, n=n, strategy=strategy)
        return run.gather("acquire", placed, cover, Row, given=labelled, most=n)
    replies = run.ask("reply", free, policy, question, run.config.reply)
    unsure = run.uncertainty("uncertainty", replies.join(pool), policy)
    rows = replies.join(unsure, key="id").join(pool)
    c = run.config.acquire
    least_sure = partial(by_uncertainty, n=n * c.spread, strategy=strategy)
    if c.spread == 1:
        return run.gather("acquire", rows, least_sure, Row, most=n)
    short = run.gather("shortlist", rows, least_sure, Row, most=n * c.spread)
    asked, sees = short.join(pool, key="source_id"), seer(run, base, policy)
    placed = short.join(run.embed("embed_shortlist", asked, sees, shortlisted), key="id")
    return run.gather("acquire", placed, partial(spread_over, n=n), Row, most=n)


def seer(run: Run, base: Policy, policy: Policy) -> Policy:
    """By whose embeddings questions are alike: the encoder's, where one is bound."""
    own = base if run.config.acquire.similarity_by == "base" else policy
    return run.role("encoder", own)


def diverse_first(rows: list, n: int, strategy: str) -> list[Row]:
    """The first choice, when nothing is labelled yet."""
    return by_diversity(rows, [], n, strategy)


def revealed(row: tuple[Row, Prompt]) -> list[Example]:
    """The annotator's answer to a chosen question: the gold one."""
    return gold_lesson(row[1])


def shortlisted(row: tuple[Row, Prompt]) -> str:
    """What is embedded of a question of the shortlist."""
    return text_of(row[1])


def text_of(prompt: Prompt) -> str:
    """What is embedded of a question."""
    return prompt.messages[-1]["content"]
