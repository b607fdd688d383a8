"""ReflectEvo: learn to reflect from one's own reflections, sorted by whether they helped.

After Li et al., 2025 (ReflectEvo). A generator answers; where the checker says wrong, a reflector
writes reflections under instructions of a pool of 32, and the generator tries again. Reflections
that helped are D+; helped against not helped is D+-; among those that helped, a judge's choice is
Dpref. The reflector learns from these, by imitation in one pass or two or by preference. At test
every answer is reflected on and tried again: no checker says which (a bound with one is optional).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from selfevo_jax.evolve import reflection as r
from selfevo_jax.evolve.lessons import gold_lesson
from selfevo_jax.evolve.run import (
    Example,
    Pair,
    Policy,
    Prompt,
    Records,
    Row,
    Run,
    Sample,
    Verdict,
    View,
    probing,
    question,
    role_defaults,
    sampling,
    together,
)

SFT = {"loss": "sft"}
PREFERENCE = {"beta": 0.01, "lr": 5e-7, "epochs": 1, "schedule": "cosine", "batch_size": 8}


def defaults() -> dict[str, Any]:
    """This method's own settings."""
    return {
        "prompts": {"n": 256},
        **probing(),
        "answer": sampling(temperature=0.0, max_new_tokens=512),
        "reflect": sampling(temperature=0.8, max_new_tokens=200),
        "revise": sampling(temperature=0.0, max_new_tokens=512),
        "pool": {"per_answer": 2, "instructions": r.KEYS},  # reflections of an answer; their keys
        "show_attempt": True,  # whether the revision sees the attempt besides the reflection
        "variants": ("one_stage", "two_stage", "dpo", "dpo_pref", "qa"),
        "judge": {"protocol": "base"},  # of dpo_pref; see selfevo_jax.judge.pairwise
        "dpo": PREFERENCE,
        "test": {
            "turns": 2,  # 1: no test, where only the corpus of reflections is wanted
            "reflection": "fresh",  # fresh | stored | none
            "stored": "",  # a file of {question, reflection}
            "max_new_tokens": 200,  # of a reflection, greedy
            "oracle": False,  # also show what a checker at test time would give
        },
        **role_defaults("generator", "reflector", "judge"),
    }


@dataclass(frozen=True)
class Team:
    """Who answers, reflects, and answers again; `whole`: the reflector does both."""

    generator: Policy
    reflector: Policy
    corrector: Policy
    whole: bool = False


def reflectevo(run: Run) -> None:
    """Make reflections, sort them, train on them in every variant, test all in two turns."""
    base = run.base()
    generator, reflector = run.role("generator", base), run.role("reflector", base)
    run.check_choices("variants", run.config.variants, VARIANTS)
    run.check_choices("test.reflection", [run.config.test.reflection], ("fresh", "stored", "none"))
    questions, untrained = run.held_out(), Team(generator, reflector, generator)
    with run.within("untrained"):
        outcomes = tested(run, "untrained", questions, untrained)
    for _ in run.rounds(1):
        prompts = run.probed(run.prompts(), generator)
        stories = reflected(run, prompts, generator, reflector)
        run.table("corpus", stories, r.corpus_table)
        for name in run.config.variants:
            with run.within(name):
                team = VARIANTS[name](run, prompts, stories, base, untrained)
                outcomes += tested(run, name, questions, team)
    if outcomes:
        table = partial(r.turns_table, oracle=run.config.test.oracle)
        run.table("table", together(outcomes), table)


def reflected(run: Run, prompts: Records[Prompt], generator: Policy, reflector: Policy) -> View:
    """Stories of answers that were wrong: (revision, verdict, reflection, answer, prompt)."""
    c = run.config
    run.check_choices("pool.instructions", c.pool.instructions, r.KEYS)
    answers = run.ask("answer", prompts, generator, question, c.answer)
    failed = answers.join(run.check(answers, prompts)).where(r.wrong).join(prompts)
    keys = partial(r.drawn_keys, keys=c.pool.instructions, n=c.pool.per_answer, seed=c.seed)
    rows = failed.expand(keys, c.pool.per_answer)
    said = run.ask("reflect", rows, reflector, r.guided_messages, c.reflect)
    again = said.join(answers).join(prompts)
    revisions = run.ask("revise", again, generator, revising(run), c.revise)
    verdicts = run.check(revisions, prompts, name="check_revise")
    return revisions.join(verdicts).join(said).join(answers).join(prompts)


def revising(run: Run, reflected: bool = True) -> partial:
    """How another attempt is asked for."""
    show = run.config.show_attempt
    return partial(r.revise_messages, show_attempt=show, reflected=reflected)


def one_stage(run: Run, prompts: View, stories: View, base: Policy, team: Team) -> Team:
    """Imitate reflection and right answer in one go, on D+."""
    learned = run.map("learn", stories.where(r.succeeded), r.whole_lesson, Example)
    trained = run.train(learned, base, objective=SFT)
    return Team(team.generator, trained, trained, whole=True)


def two_stage(run: Run, prompts: View, stories: View, base: Policy, team: Team) -> Team:
    """Imitate the reflections of D+; then, from there, the right answers that followed."""
    plus = stories.where(r.succeeded)
    second = partial(r.revise_lesson, show_attempt=run.config.show_attempt)
    reflector = run.train(run.map("learn", plus, r.reflection_lesson, Example), base, objective=SFT)
    mending = run.map("learn_2", plus, second, Example)
    corrector = run.train(mending, reflector, objective=SFT, name="train_2")
    return Team(team.generator, reflector, corrector)


def dpo(run: Run, prompts: View, stories: View, base: Policy, team: Team) -> Team:
    """Prefer reflections that helped to others on the same answer: D+-."""
    groups = stories.groups()
    pairs = run.map(
        "pairs", groups, r.helped_against_not, Pair, most=run.config.pool.per_answer, why=NO_PAIRS
    )
    return preferring(run, pairs, base, team)


def dpo_pref(run: Run, prompts: View, stories: View, base: Policy, team: Team) -> Team:
    """Prefer what a judge prefers among reflections that helped: Dpref."""
    rivals, judge = stories.groups().where(r.has_rivals), run.role("judge", base)
    protocol = run.config.judge.protocol
    judged = run.judge("judge", rivals, judge, r.rival_contest, protocol=protocol)
    rows = rivals.join(judged, key="prompt_id")
    return preferring(run, run.map("pairs", rows, r.preferred, Pair, why=NO_PAIRS), base, team)


def preferring(run: Run, pairs: Records[Pair], base: Policy, team: Team) -> Team:
    """The reflector after a preference loss against the base."""
    learn = run.config.dpo.to_dict()
    objective = {"loss": "dpo", "beta": learn.pop("beta")}
    trained = run.train(pairs, base, objective=objective, learn=learn)
    return Team(team.generator, trained, team.corrector)


def qa(run: Run, prompts: View, stories: View, base: Policy, team: Team) -> Team:
    """The baseline: imitate the gold answers."""
    trained = run.train(run.map("learn", prompts, gold_lesson, Example), base, objective=SFT)
    return Team(trained, trained, trained)


VARIANTS = {f.__name__: f for f in (one_stage, two_stage, dpo, dpo_pref, qa)}
NO_PAIRS = "nothing to compare: raise pool.per_answer or prompts.n, or the judge abstained"


def tested(run: Run, name: str, questions: Records[Prompt], team: Team) -> list[Records[Row]]:
    """What became of every held-out question at every later turn."""
    c = run.config
    if c.test.turns < 2:
        return []
    greedy = sampling(temperature=0.0, max_new_tokens=c.test.max_new_tokens)
    answer = greedy | c.evaluate.to_dict() | {"n": 1}
    first = run.ask("turn_1", questions, team.generator, question, answer)
    right = run.check(first, questions, name="check_1")
    said = run.ask("verify", first.join(questions), team.corrector, r.verify_messages, greedy)
    believed = run.map("believe", said.join(first), r.belief, Verdict)
    links, outcomes = [first], []
    for turn in range(2, c.test.turns + 1):
        rows = (current := links[0]).join(questions)
        if team.whole:
            later = run.ask(f"turn_{turn}", rows, team.reflector, r.whole_messages, answer)
        elif c.test.reflection == "none":
            later = run.ask(f"turn_{turn}", rows, team.corrector, revising(run, False), answer)
        else:
            links.insert(0, reflections(run, turn, rows, team.reflector, greedy))
            again = links[0].join(current).join(questions)
            later = run.ask(f"turn_{turn}", again, team.corrector, revising(run), answer)
        chain: View = later.join(run.check(later, questions, name=f"check_{turn}"))
        for link in links:
            chain = chain.join(link)
        chain = chain.join(right).join(believed).join(questions)
        what = partial(r.outcome, variant=name, turn=turn)
        outcomes.append(run.map(f"outcome_{turn}", chain, what, Row))
        links.insert(0, later)
    return outcomes


def reflections(run: Run, turn: int, rows: View, reflector: Policy, how: Any) -> Records[Sample]:
    """What is said about each answer: by the reflector now, or in a file."""
    name, stored = f"reflect_{turn}", run.config.test.stored
    if run.config.test.reflection != "stored":
        return run.ask(name, rows, reflector, r.reflect_messages, how)
    said = run.read(f"stored_{turn}", stored, r.stored_row, Row)
    return run.map(name, rows, r.stored_reflection, Sample, given=said)
