"""RefEval: reference answers guide the policy's own judgement, which it is then trained on.

After Shi et al., 2026 (arXiv:2602.16802). A reference to each question comes from a stronger model,
a file or the gold answers; the policy imitates the references, samples N answers, judges all pairs
of them in both orders with the reference beside it, and learns by DPO to prefer the best to the
worst. Several strengths of the pull to the reference policy share all of that; the best on
validation questions is kept. Other judges run beside it as baselines.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from selfevo_jax.evolve import contests
from selfevo_jax.evolve.guiding import last_question
from selfevo_jax.evolve.run import (
    Example,
    Pair,
    Policy,
    Prompt,
    Records,
    Row,
    Run,
    Sample,
    View,
    banding,
    question,
    role_defaults,
    rounds,
    sampling,
    together,
)
from selfevo_jax.evolve.tables import accuracy

LIKENESS = ("rouge", "embedding")
JUDGES = ("refeval", "refmatch", "base", "cot", *LIKENESS)
SFT = {"loss": "sft"}
IMITATION = {"lr": 5e-6, "epochs": 2, "warmup": 0.03, "schedule": "linear", "batch_size": 8}
NOTHING = (
    "no two different answers to one question are judged further apart than pair.least_gap; "
    "raise sample.n or sample.temperature, or lower the gap"
)


def defaults() -> dict[str, Any]:
    """This method's own settings."""
    return {
        **rounds(),
        **banding(),
        "references": {
            "by": "gold",  # gold | teacher | file
            "file": "",  # {question, reference}
            "reply": sampling(temperature=0.0, max_new_tokens=2048),
        },
        "sft": {"use": True, "learn": IMITATION},
        "sample": sampling(n=5, temperature=0.8, max_new_tokens=2048) | {"top_p": 0.95},
        "judges": ("refeval",),  # of JUDGES; each has its own pairs, grid and policy
        "protocol": "",  # a prompt file in the place of the one called as the judge
        "comparisons": 0,  # of each candidate with others, drawn; 0: all pairs
        "pair": {
            "least_gap": 0.0,
            "finished": True,  # no answer that was cut off
            "rejected_by": "policy",  # whose worst answer: policy | base (as it was in round 0)
        },
        "betas": (0.005, 0.01, 0.02, 0.05, 0.1),
        "validation": {"questions": 32, "by": "accuracy"},  # accuracy | preference
        "arena": "base",  # the protocol of the win rates over the base's answers; "": none
        "greedy": sampling(temperature=0.0, max_new_tokens=512),  # validation, arena
        **role_defaults("teacher", "judge", "arena", "encoder"),
    }


def refeval(run: Run) -> Policy:
    """References, imitation, and for every judge: scores, pairs, DPO at every beta, the best."""
    c, base = run.config, run.base()
    run.check_choices("judges", c.judges, JUDGES)
    run.check_given("judges", f"one or more of {', '.join(JUDGES)}")
    check_settings(run)
    evaluated, policies = [run.evaluate(base)], dict.fromkeys(c.judges, base)
    scorings, finals = [], {}
    for number in run.rounds():
        prompts = run.prompts()
        references = referred(run, prompts, base)
        if number == 1 and c.sft.use:
            rows = prompts.join(references, key="id")
            learned = run.map("learn", rows, contests.reference_lesson, Example)
            start = run.train(learned, base, objective=SFT, learn=c.sft.learn, name="sft")
            evaluated.append(run.evaluate(start, name="evaluate_sft"))
            finals, policies = {"sft": start}, dict.fromkeys(c.judges, start)
        for judge in c.judges:
            with run.within(judge):
                drawn = run.ask("sample", prompts, policies[judge], question, c.sample)
                samples = competing(run, run.band(drawn, prompts), prompts, base, policies[judge])
                scores = scored(run, judge, policies[judge], samples, prompts, references)
                name = partial(contests.scoring_row, name=f"{judge} {number}")
                scorings.append(run.gather("scoring", scores, name, Row))
                policies[judge] = improved(run, policies[judge], samples.join(prompts), scores)
                evaluated.append(run.evaluate(policies[judge]))
    run.table("scorings", together(scorings), contests.as_they_are)
    run.table("table", together(evaluated), accuracy)
    if c.arena:
        arena(run, base, finals | policies)
    return policies[c.judges[0]]


def check_settings(run: Run) -> None:
    """Refuses unknown names in the settings of `referred`, `competing` and `improved`."""
    c = run.config
    run.check_given("betas", "one or more strengths, such as (0.05,0.1)")
    run.check_choices("pair.rejected_by", [c.pair.rejected_by], ("policy", "base"))
    run.check_choices("references.by", [c.references.by], ("gold", "teacher", "file"))
    run.check_choices("validation.by", [c.validation.by], ("accuracy", "preference"))


def referred(run: Run, prompts: Records[Prompt], base: Policy) -> Records[Row]:
    """One reference to every question."""
    c = run.config.references
    if c.by == "gold":
        return run.map("references", prompts, contests.gold_reference, Row)
    if c.by == "file":
        rows = run.read("read_references", c.file, contests.file_reference, Row)
        return run.map("references", prompts, contests.found_reference, Row, given=rows)
    replies = run.ask("refer", prompts, run.role("teacher"), question, c.reply)
    return run.map("references", replies.join(prompts), contests.replied_reference, Row)


def competing(
    run: Run, samples: Records[Sample], prompts: Records[Prompt], base: Policy, policy: Policy
) -> Records[Sample]:
    """The policy's samples; where its rejected ones are to be the base's, these beside them."""
    if run.config.pair.rejected_by == "policy" or policy.name == base.name:
        return samples
    older = run.ask("sample_base", prompts, base, question, run.config.sample)
    return run.gather("candidates_base", together([samples, older]), contests.by_question, Sample)


def scored(
    run: Run,
    judge: str,
    policy: Policy,
    samples: Records[Sample],
    prompts: Records[Prompt],
    references: Records[Row],
) -> Records[Row]:
    """Scores of the policy's answers, by the policy itself or by their likeness to references."""
    c = run.config
    rows = samples.groups().join(prompts).join(references, key="prompt_id")
    if judge == "rouge":
        return run.map("score", rows, partial(contests.rouge_scores, finished=c.pair.finished), Row)
    if judge == "embedding":
        encoder, asked = run.role("encoder", policy), prompts.join(references, key="id")
        wanted = run.embed("embed_references", asked, encoder, contests.reference_text)
        placed = samples.join(run.embed("embed", samples, encoder, contests.sample_text)).groups()
        rows = placed.join(prompts).join(wanted, key="prompt_id")
        return run.map(
            "score", rows, partial(contests.embedding_scores, finished=c.pair.finished), Row
        )
    met = partial(
        contests.matches, finished=c.pair.finished, comparisons=c.comparisons, seed=c.seed
    )
    n = c.sample.n * (2 if c.pair.rejected_by == "base" else 1)
    bouts = run.map("contests", rows, met, Row, most=n * (n - 1) // 2, why=NOTHING)
    own, protocol = run.role("judge", policy), c.protocol or judge
    said = run.judge("judge", bouts, own, contests.contest_of, protocol=protocol)
    compared = bouts.join(said, key="id").groups("source_id")
    return run.map("score", compared, contests.judged_scores, Row)


def improved(run: Run, policy: Policy, rows: View, scores: Records[Row]) -> Policy:
    """The policy after preferring its best answers to its worst; rows are (answer, prompt)."""
    c = run.config.pair
    widest = partial(contests.best_against_worst, least_gap=c.least_gap, rejected_by=c.rejected_by)
    pairs = run.gather("pair", rows, widest, Pair, given=scores, why=NOTHING)
    return run.accept(best_beta(run, pairs, policy), policy)


def best_beta(run: Run, pairs: Records[Pair], start: Policy) -> Policy:
    """The best, on validation questions, of a DPO at every beta from the same start and pairs."""
    c = run.config
    validation = run.validation(c.validation.questions)
    first = run.ask("first", validation, start, question, c.greedy)
    trained, values = list[Policy](), list[View]()
    for beta in c.betas:
        with run.within(f"beta_{beta}"):
            policy = run.train(pairs, start, objective={"beta": beta}, candidate=True)
            trained.append(policy)
            answers = run.ask("answer", first.join(validation), policy, last_question, c.greedy)
            if c.validation.by == "accuracy":
                found, value = run.check(answers, validation), contests.accuracy_row
            else:
                rows = answers.join(first).join(validation)
                judge, protocol = run.role("judge", start), c.protocol or "refeval"
                found = run.judge("prefer", rows, judge, contests.duel, protocol=protocol)
                value = contests.preference_row
            values.append(run.gather("value", found, partial(value, name=policy.name), Row))
    return run.choose(trained, together(values), name="best")


def arena(run: Run, base: Policy, policies: Mapping[str, Policy]) -> None:
    """Win rates over the base's answers to held-out questions."""
    c, questions, judge = run.config, run.held_out(), run.role("arena", base)
    others, fought = run.ask("arena.first", questions, base, question, c.greedy), []
    # A refused candidate leaves its forerunner in its place: nobody fights twice.
    different = {policy.name: (name, policy) for name, policy in reversed(policies.items())}
    for name, policy in reversed(different.values()):
        answers = run.ask(f"arena.{name}", others.join(questions), policy, last_question, c.greedy)
        rows = answers.join(others).join(questions)
        said = run.judge(f"arena.{name}.judge", rows, judge, contests.duel, protocol=c.arena)
        fought.append(rows.join(said, key="id"))
    run.table("arena", together(fought), contests.win_rates)
