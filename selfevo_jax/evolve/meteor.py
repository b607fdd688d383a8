"""METEOR: distil with the student's guidelines, iterate with advice, self-train on dear decoding.

After Li et al., 2024 (METEOR). (1) The student writes a guideline to each question, a teacher
answers along it, the student imitates the answers. (2) Part by part, the student answers with
reasons, a teacher (or the task's checker) says right or gives advice, the student revises; only
answers judged right are kept, and every `train_every` of them are a training, with the optimiser
going on (there the trained student went on within a part, here from the next part on). (3) The
student learns to prefer its costly decoding to its cheap one, by token: length earns nothing.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from selfevo_jax.evolve import guiding
from selfevo_jax.evolve.criteria import compare, marked
from selfevo_jax.evolve.lessons import reply_lesson
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
    probing,
    prompt_file,
    question,
    role_defaults,
    rounds,
    sampling,
    together,
)  # fmt: skip
from selfevo_jax.evolve.tables import accuracy

GUIDELINE, ANSWER = prompt_file("meteor_guideline"), prompt_file("meteor_answer")
DISTIL, UNGUIDED = prompt_file("meteor_distil"), prompt_file("meteor_unguided")
REVISE, CRITERIA = prompt_file("meteor_revise"), prompt_file("meteor_criteria")
SFT = {"loss": "sft"}
RIVALS = ("rival_1", "rival_2", "rival_3")


def defaults() -> dict[str, Any]:
    """This method's own settings. `rounds` is the number of parts of the `prompts.n` questions."""
    small = {"lr": 3e-5, "epochs": 1, "schedule": "constant", "warmup": 0.0}
    return {
        **rounds(),
        **probing(),
        "field": "the subject",  # what the guideline's author and the teacher are told they know
        "letters": 4000,  # of a model's text that another request shows
        "guideline": sampling(max_new_tokens=256) | {"top_k": 50, "top_p": 0.95},
        "distil": {
            "by": "gold",  # who answers: gold | teacher
            "compare": False,  # the teacher's answers with and without guidelines
            "reply": sampling(temperature=0.7, max_new_tokens=1024),
            "learn": {"lr": 3e-5, "epochs": 3},
        },
        "iterate": {
            "verdict": "checker",  # who says right or wrong: checker | judge
            "reasons": True,  # ask for reasons before the answer
            "turns": 3,
            "train_every": 10,  # kept answers; fewer wait for those of the next part
            "answer": sampling(temperature=0.7, max_new_tokens=1024) | {"top_p": 0.9},
            "advice": sampling(temperature=0.0, max_new_tokens=512),
            "learn": small,
        },
        "self_train": {
            "cheap": sampling(temperature=0.0, max_new_tokens=512),
            "costly": sampling(max_new_tokens=512) | {"num_beams": 10},  # or n > 1: best by token
            "length_ratio": 1.5,  # of the longer to the shorter, in tokens, at most
            "rejected_by": "policy",  # whose cheap decoding: policy | base (as it was in round 0)
            "margin": 1.0,
            "beta": 0.1,
            "learn": small | {"lr": 1e-5},
        },
        "criteria": {
            "questions": 0,  # held-out: the judge marks all stages' and rivals' answers; 0: none
            "reply": sampling(temperature=0.0, max_new_tokens=1500),
        },
        **role_defaults("teacher", "judge", *RIVALS),
    }


def meteor(run: Run) -> Policy:
    """Distillation, iteration, self-training, and what each of them gained."""
    c, base = run.config, run.base()
    run.check_choices("distil.by", [c.distil.by], ("gold", "teacher"))
    run.check_choices("self_train.rejected_by", [c.self_train.rejected_by], ("policy", "base"))
    run.check_choices("iterate.verdict", [c.iterate.verdict], ("checker", "judge"))
    evaluated, numbers = [run.evaluate(base)], run.rounds(c.rounds + 2)
    next(numbers)
    prompts = run.probed(run.prompts(), base)
    distilled = run.accept(distillation(run, prompts, base), base)
    evaluated.append(run.evaluate(distilled))
    iterated = run.accept(iteration(run, numbers, prompts, distilled), distilled)
    evaluated.append(run.evaluate(iterated))
    next(numbers)
    older = base if c.self_train.rejected_by == "base" else iterated
    self_trained = run.accept(self_training(run, prompts, iterated, older), iterated)
    evaluated.append(run.evaluate(self_trained))
    run.table("table", together(evaluated), accuracy)
    if c.criteria.questions:
        models = dict(base=base, distilled=distilled, iterated=iterated, trained=self_trained)
        models |= {n: rival for n in RIVALS if (rival := run.role(n, base)) is not base}
        compare(run, models, c.criteria.questions, c.self_train.cheap, base, CRITERIA)
    return self_trained


def distillation(run: Run, prompts: Records[Prompt], student: Policy) -> Policy:
    """The student after imitating answers that were given along its guidelines."""
    c = run.config
    wanted = partial(guiding.requested, file=GUIDELINE, field=c.field)
    rows = run.ask("guideline", prompts, student, wanted, c.guideline).join(prompts)
    if c.distil.by == "teacher" or c.distil.compare:
        teacher = run.role("teacher")
        along = partial(guiding.guided, file=DISTIL, field=c.field, letters=c.letters)
        answers = run.ask("distil", rows, teacher, along, c.distil.reply)
        if c.distil.compare:
            freely = partial(guiding.requested, file=UNGUIDED, field=c.field)
            others = run.ask("unguided", answers.join(prompts), teacher, freely, c.distil.reply)
            sides = ("with", "without")
            marked(run, "quality", [others, answers], prompts, sides, student, CRITERIA)
    if c.distil.by == "gold":
        answers = run.map("gold", rows, guiding.gold_reply, Sample)
    learned = run.map("learn", answers.join(prompts), reply_lesson, Example)
    return run.train(learned, student, objective=SFT, learn=c.distil.learn)


def iteration(run: Run, numbers: Iterator[int], prompts: View, student: Policy) -> Policy:
    """The student after bursts of training on its right answers."""
    c = run.config
    kept, spent, opinions = list[View](), list[View](), list[View]()
    for number in islice(numbers, c.rounds):
        last, size = number == c.rounds + 1, -(-prompts.count // c.rounds)
        part = partial(guiding.part_of, part=number - 2, parts=c.rounds)
        questions = run.gather("questions", prompts, part, Prompt, most=size)
        refine(run, questions, student, kept, opinions)
        most = -(-questions.count * c.iterate.answer.n // c.iterate.train_every) + last
        student = bursts(run, kept, spent, student, most, last)
    run.table("turns", together(opinions), guiding.turns)
    return student


def bursts(
    run: Run, kept: list[View], spent: list[View], student: Policy, most: int, last: bool
) -> Policy:
    """The student after a training on every burst of kept answers; the optimiser goes on."""
    c = run.config.iterate
    one = partial(guiding.burst, every=c.train_every, last=last)
    for number in range(1, most + 1):
        waiting = together(kept).without(together(spent), "id") if spent else together(kept)
        burst = run.gather(f"burst_{number}", waiting, one, Example, most=c.train_every, least=0)
        if not burst.count:
            break
        spent.append(burst)
        name = f"train_{number}"
        student = run.train(burst, student, objective=SFT, learn=c.learn, name=name, carry=True)
    return student


def refine(
    run: Run, questions: Records[Prompt], student: Policy, kept: list[View], opinions: list[View]
) -> None:
    """Answer, opinion, revision, until all answers are right or the turns are used up."""
    c = run.config.iterate
    how = partial(guiding.reasoned, file=ANSWER) if c.reasons else question
    again = partial(guiding.revise_messages, file=REVISE, letters=run.config.letters)
    answers = run.ask("answer_1", questions, student, how, c.answer)
    for turn in range(1, c.turns + 1):
        said = opinion(run, turn, answers, questions, student)
        opinions.append(said)
        judged = answers.join(said, key="id").join(questions)
        kept.append(run.map(f"keep_{turn}", judged, guiding.right_lesson, Example, least=0))
        wrong = run.map(f"wrong_{turn}", judged, guiding.wrong_answer, Sample, least=0)
        if turn == c.turns or not wrong.count:
            return
        rows = wrong.join(said, key="id").join(questions)
        answers = run.ask(f"answer_{turn + 1}", rows, student, again, c.answer.to_dict() | {"n": 1})


def opinion(
    run: Run, turn: int, answers: Records[Sample], questions: Records[Prompt], student: Policy
) -> Records[Row]:
    """Right, or wrong with advice, of every answer: by the task's checker or by the judge."""
    c = run.config
    if c.iterate.verdict == "checker":
        rows = answers.join(run.check(answers, questions, name=f"check_{turn}"))
        return run.map(f"opinion_{turn}", rows, partial(guiding.rule_opinion, turn=turn), Row)
    wanted, judge = partial(guiding.advice_messages, letters=c.letters), run.role("judge", student)
    advice = run.ask(f"advice_{turn}", answers.join(questions), judge, wanted, c.iterate.advice)
    said = partial(guiding.judge_opinion, turn=turn)
    return run.map(f"opinion_{turn}", advice.join(answers), said, Row)


def self_training(run: Run, prompts: Records[Prompt], student: Policy, older: Policy) -> Policy:
    """The student after learning to prefer its costly decoding to the cheap one of `older`."""
    c = run.config.self_train
    cheap = run.ask("cheap", prompts, older, question, c.cheap)
    costly = run.ask("costly", cheap.join(prompts), student, guiding.last_question, c.costly)
    rows = costly.join(cheap).join(prompts).groups("parent_id")
    better = partial(guiding.costly_over_cheap, length_ratio=c.length_ratio)
    run.table("decodings", rows, partial(guiding.decodings, length_ratio=c.length_ratio))
    pairs = run.map("pair", rows, better, Pair, least=0)
    if not pairs.count:
        return student  # nothing to learn: the table says why
    ranking = {"loss": "ranking", "margin": c.margin, "beta": c.beta}
    return run.train(pairs, student, objective=ranking, learn=c.learn)
