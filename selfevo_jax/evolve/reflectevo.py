"""ReflectEvo: learn to reflect from one's own reflections, sorted by whether they helped.

After Li et al., 2025 (ReflectEvo). A generator answers; where the checker says wrong, a reflector
writes reflections under instructions of a pool of 32, and the generator tries again. Reflections
that helped are D+; helped against not helped is D+-; among those that helped, a judge's choice is
Dpref. The reflector learns from these, by imitation in one pass or two or by preference. At test
every answer is reflected on and tried again: no checker says which (a bound with one is optional).
"""

from functools import partial
from typing import Any, NamedTuple

from selfevo_jax.evolve import curation, turns
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
)  # fmt: skip

SFT = {"loss": "sft"}
# Turns (the first answer and those after it), and what a later one is given: fresh | stored | none.
AGAIN = {"turns": 2, "reflection": "fresh", "stored": ""}  # stored: a file {question, reflection}


def defaults() -> dict[str, Any]:
    """This method's own settings."""
    return {
        "prompts": {"n": 256},
        **probing(),
        "answer": sampling(temperature=0.0, max_new_tokens=512),
        "reflect": sampling(temperature=0.8, max_new_tokens=200),
        "revise": sampling(temperature=0.0, max_new_tokens=512),
        "pool": {"per_answer": 2, "instructions": r.KEYS},  # reflections of an answer; their keys
        "generate": AGAIN,  # how the data are made
        "show_attempt": True,  # whether the revision sees the attempt besides the reflection
        "variants": ("one_stage", "two_stage", "dpo", "dpo_pref", "qa"),
        "judge": {"protocol": "base"},  # of dpo_pref; see selfevo_jax.judge.pairwise
        "dpo": {"beta": 0.01, "lr": 5e-7, "epochs": 1, "schedule": "cosine", "batch_size": 8},
        "test": {
            **AGAIN,  # 1 turn: no test, where only the corpus of reflections is wanted
            "max_new_tokens": 200,  # of a reflection, greedy
            "oracle": False,  # also show what a checker at test time would give
        },
        **role_defaults("generator", "reflector", "judge"),
    }


class Team(NamedTuple):
    """Who answers, reflects, and answers again; `whole`: the reflector does both."""

    generator: Policy
    reflector: Policy
    corrector: Policy
    whole: bool = False


def reflectevo(run: Run) -> None:
    """Make reflections, sort them, train on them in every variant, test all in two turns."""
    c, base = run.config, run.base()
    generator, reflector = run.role("generator", base), run.role("reflector", base)
    r.check_settings(run, tuple(VARIANTS))
    start = r.learner(run, reflector, base)
    questions, untrained = run.held_out(), Team(generator, reflector, generator)
    with run.within("untrained"):
        outcomes = tested(run, "untrained", questions, untrained)
    for _ in run.rounds(1):
        prompts = run.probed(run.prompts(), generator)
        stories = reflected(run, prompts, generator, reflector, c.generate)
        run.table("corpus", stories, curation.corpus_table)
        for name in c.variants:
            with run.within(name):
                if team := VARIANTS[name](run, prompts, stories, start, untrained):
                    outcomes += tested(run, name, questions, team)
                else:
                    run.progress.say(f"{name} is not trained: {turns.LACKING[name]}")
    if outcomes:
        table = partial(turns.turns_table, oracle=c.test.oracle, variants=c.variants)
        run.table("table", together(outcomes), table)


def reflected(
    run: Run, prompts: Records[Prompt], generator: Policy, reflector: Policy, how: Any = AGAIN
) -> View:
    """Stories of answers that were wrong: (revision, verdict, reflection, answer, prompt).

    What is still wrong after a turn is reflected on in the next. Where nothing was wrong there are
    no stories; with `how.reflection` none they are without a reflection.
    """
    c, n = run.config, run.config.pool.per_answer
    run.check_choices("pool.instructions", c.pool.instructions, r.KEYS)
    keys = partial(r.drawn_keys, keys=c.pool.instructions, n=n, seed=c.seed)
    answers = run.ask("answer", prompts, generator, question, c.answer)
    verdicts, stories = run.check(answers, prompts), list[View]()
    for turn in range(2, how["turns"] + 1):
        mark = f"_{turn}" if turn > 2 else ""
        failed = answers.join(verdicts).where(curation.wrong)
        wrong = run.map(f"wrong{mark}", failed, curation.answer_of, Sample, least=0)
        if not wrong.count:
            run.progress.say(f"turn {turn}: {curation.ALL_RIGHT}")
            break
        rows = wrong.join(prompts)
        fresh = (rows.expand(keys, n), reflector, r.guided_messages, c.reflect)
        said = r.reflections(run, f"reflect{mark}", rows, how, fresh, n)
        answers = r.retried(run, f"revise{mark}", said, wrong, prompts, generator, c.revise)
        verdicts = run.check(answers, prompts, name=f"check_revise{mark}")
        links = [verdicts, wrong] if said is None else [verdicts, said, wrong]
        stories.append(r.chained(answers, links).join(prompts))
    return together(stories)


def one_stage(run: Run, prompts: View, stories: View, start: Policy, team: Team) -> Team | None:
    """Imitate reflection and right answer in one go, on D+."""
    trained = imitating(run, stories.where(curation.succeeded), curation.whole_lesson, start)
    return trained and Team(team.generator, trained, trained, whole=True)


def two_stage(run: Run, prompts: View, stories: View, start: Policy, team: Team) -> Team | None:
    """Imitate the reflections of D+; then, from there, the right answers that followed."""
    plus = stories.where(curation.succeeded)
    second = partial(curation.revise_lesson, show_attempt=run.config.show_attempt)
    reflector = imitating(run, plus, curation.reflection_lesson, start)
    corrector = reflector and imitating(run, plus, second, reflector, "_2")
    return reflector and corrector and Team(team.generator, reflector, corrector)


def qa(run: Run, prompts: View, stories: View, start: Policy, team: Team) -> Team | None:
    """The baseline: imitate the gold answers."""
    trained = imitating(run, prompts, gold_lesson, run.base())
    return trained and Team(trained, trained, trained)


def imitating(run: Run, rows: View, lesson: Any, start: Policy, part: str = "") -> Policy | None:
    """`start` after imitating the lesson of each row; None where there are no lessons."""
    learned = run.map(f"learn{part}", rows, lesson, Example, least=0)
    return run.train(learned, start, objective=SFT, name=f"train{part}") if learned.count else None


def dpo(run: Run, prompts: View, stories: View, start: Policy, team: Team) -> Team | None:
    """Prefer reflections that helped to others on the same answer: D+-."""
    most, told = run.config.pool.per_answer, stories.groups()
    pairs = run.map("pairs", told, curation.helped_against_not, Pair, most=most, least=0)
    return preferring(run, pairs, start, team)


def dpo_pref(run: Run, prompts: View, stories: View, start: Policy, team: Team) -> Team | None:
    """Prefer what a judge prefers among reflections that helped: Dpref."""
    most, judge = run.config.pool.per_answer, run.role("judge", run.base())
    rivals = run.map("rivals", stories.groups(), curation.rivals, Pair, most=most, least=0)
    if not rivals.count:
        return None
    judged = run.judge("judge", rivals, judge, curation.contest, protocol=run.config.judge.protocol)
    pairs = run.map("pairs", rivals.join(judged, key="id"), curation.preferred, Pair, least=0)
    return preferring(run, pairs, start, team)


def preferring(run: Run, pairs: Records[Pair], start: Policy, team: Team) -> Team | None:
    """The reflector after a preference loss against itself; None where there are no pairs."""
    if not pairs.count:
        return None
    learn = run.config.dpo.to_dict()
    objective = {"loss": "dpo", "beta": learn.pop("beta")}
    trained = run.train(pairs, start, objective=objective, learn=learn)
    return Team(team.generator, trained, team.corrector)


VARIANTS = {f.__name__: f for f in (one_stage, two_stage, dpo, dpo_pref, qa)}


def tested(run: Run, name: str, questions: Records[Prompt], team: Team) -> list[Records[Row]]:
    """What became of every held-out question at every later turn."""
    c, how = run.config, run.config.test
    if how.turns < 2:
        return []
    greedy = sampling(temperature=0.0, max_new_tokens=how.max_new_tokens)
    answer = greedy | c.evaluate.to_dict() | {"n": 1}
    first = run.ask("turn_1", questions, team.generator, question, answer)
    right = run.check(first, questions, name="check_1")
    links, outcomes = [first, right], []
    for turn in range(2, how.turns + 1):
        rows = (current := links[0]).join(questions)
        word = run.ask(f"verify_{turn - 1}", rows, team.corrector, r.verify_messages, greedy)
        links.insert(2, run.map(f"believe_{turn - 1}", word.join(current), turns.belief, Verdict))
        said, again = None, f"turn_{turn}"
        if team.whole:
            later = run.ask(again, rows, team.reflector, r.whole_messages, answer)
        else:
            fresh = (rows, team.reflector, r.reflect_messages, greedy)
            said = r.reflections(run, f"reflect_{turn}", rows, how, fresh, every=True)
            later = r.retried(run, again, said, current, questions, team.corrector, answer)
        right = run.check(later, questions, name=f"check_{turn}")
        links = [right, *links] if said is None else [right, said, *links]
        story, what = r.chained(later, links), partial(turns.outcome, variant=name, turn=turn)
        outcomes.append(run.map(f"outcome_{turn}", story.join(questions), what, Row))
        links.insert(0, later)
    return outcomes
