"""Reflection in words and in records: the instruction pool, the requests, what is curated.

Pure functions of rows, and the two stages that making the data and testing have in common.

The pool has 2 x 8 x 2 instructions with keys `v-e-p`: how to verify, which kind of error to look
for, how concrete the plan is (ReflectEvo; the wording is ours).
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.task import STYLES
from selfevo_jax.evolve.lessons import lesson
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.evolve.run import Run
from selfevo_jax.evolve.settings import prompt_file
from selfevo_jax.evolve.tables import gain, share
from selfevo_jax.evolve.views import Records, View
from selfevo_jax.judge.pairwise import Comparison, Contest
from selfevo_jax.records import Example, Pair, Prompt, Row, Sample, Verdict

VERIFY = {
    "1": "Go through it step by step and check each step before the next.",
    "2": "Read it once quickly and point at what strikes you first.",
}
FOCUS = {
    "1": "Look for mistakes in calculation.",
    "2": "Look for steps that are taken in a wrong order or left out.",
    "3": "Look for conclusions that do not follow.",
    "4": "Look for statements that contradict each other.",
    "5": "Look for conditions of the question that are not met.",
    "6": "Look for what is beside the point, and for what is missing.",
    "7": "Look for a form or structure that was not asked for.",
    "8": "Look for statements about the world that are not true.",
}
PLAN = {
    "1": "Then name in one sentence what should be done differently.",
    "2": "Then list, for each mistake, the concrete correction to make.",
}
BELIEF = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
REFLECT, WHOLE = prompt_file("reflect"), prompt_file("reflect_and_answer")
GUIDED, REVISE = prompt_file("reflect_guided"), prompt_file("reflect_revise")
VERIFY_ANSWER = prompt_file("reflect_verify")
KEYS = tuple("-".join(key) for key in itertools.product(VERIFY, FOCUS, PLAN))
Messages = Sequence[Mapping[str, str]]
ENDINGS = tuple(style.format(question="") for style in STYLES.values())  # what follows a question
ALL_RIGHT = "every answer was right, there is nothing to reflect on: take harder questions"
NONE_STORED = "no wrong answer is to a question of the file of reflections"
LACKING = {  # what a variant that was not trained had too little of
    "one_stage": "no reflection helped; raise prompts.n or pool.per_answer",
    "two_stage": "no reflection helped; raise prompts.n or pool.per_answer",
    "dpo": "of no answer one reflection helped and another did not; raise pool.per_answer",
    "dpo_pref": "of no answer two reflections helped, or the judge preferred none",
    "qa": "no question has a gold answer",
}


def drawn_keys(row: tuple[Any, ...], keys: Sequence[str], n: int, seed: int) -> list[str]:
    """`n` different instructions for the first record of a row, decided by its id."""
    order = sorted(
        keys, key=lambda key: hashlib.sha256(f"{seed}{row[0].id}{key}".encode()).digest()
    )
    return order[:n]


def asked_of(prompt: Prompt) -> str:
    """The question as a text."""
    return prompt.messages[-1]["content"]


def reflect_messages(row: tuple[Sample, Prompt]) -> Messages:
    """The request to look back on an answer: the one that is trained and tested."""
    return REFLECT.fill(_looked_at(row))


def whole_messages(row: tuple[Sample, Prompt]) -> Messages:
    """The request to look back and to answer again, in one go: trained and tested."""
    return WHOLE.fill(_looked_at(row))


def verify_messages(row: tuple[Sample, Prompt]) -> Messages:
    """The request to say whether an answer is right."""
    return VERIFY_ANSWER.fill(_looked_at(row))


def _looked_at(row: tuple[Sample, Prompt]) -> dict[str, str]:
    attempt, prompt = row
    return {"question": asked_of(prompt), "attempt": attempt.text.strip()}


def guided_messages(row: tuple[Any, ...]) -> Messages:
    """The same with an instruction of the pool, to make data: row (answer, ..., prompt, key)."""
    attempt, prompt, key = row[0], row[-2], row[-1]
    verify, focus, plan = key.split("-")
    how = {"verify": VERIFY[verify], "focus": FOCUS[focus], "plan": PLAN[plan]}
    return GUIDED.fill(_looked_at((attempt, prompt)) | how)


def revise_messages(row: tuple[Any, ...], show_attempt: bool, reflected: bool) -> Messages:
    """The request for another attempt: row (reflection, answer, prompt) or (answer, prompt).

    It never says whether the attempt was right. With nothing to show it is the question itself.
    """
    reflection, attempt, prompt = row if reflected else (None, *row)
    before = f"Here is an earlier attempt.\n\nAttempt: {attempt.text.strip()}\n\n"
    before = before if show_attempt else ""
    if reflection is not None:
        before += f"Here is what was said about it.\n\nReflection: {reflection.text.strip()}\n\n"
    if not before:
        return prompt.messages
    return REVISE.fill({"before": before, "question": asked_of(prompt)})


def check_settings(run: Run, variants: Sequence[str]) -> None:
    """Refuses unknown words, and variants that learn from reflections where none are made."""
    for section in ("generate", "test"):
        source = run.config[section].reflection
        run.check_choices(f"{section}.reflection", [source], ("fresh", "stored", "none"))
        if source == "stored":
            run.check_given(f"{section}.stored", "a file of questions and reflections on them")
    run.check_between("generate.turns", 2)
    reflects = run.config.generate.reflection != "none"
    run.check_choices("variants", run.config.variants, variants if reflects else ("qa",))


def learner(run: Run, reflector: Policy, base: Policy) -> Policy:
    """Whom training starts from: a reflector bound as an adapter on the run's own base, else that.

    Another model, or one on a server, cannot be trained here.
    """
    role = reflector.role
    if role is None or not role.adapter or role.model not in ("", run.config.model):
        return base
    return replace(reflector, adapter=Path(role.adapter))


def reflections(
    run: Run,
    name: str,
    rows: View,
    how: Mapping[str, Any],
    fresh: tuple[View, Policy, Callable[..., Messages], Mapping[str, Any]],
    most: int = 1,
    every: bool = False,
) -> Records[Sample] | None:
    """What is said about each answer in rows (answer, prompt); None where nothing is.

    `how.reflection`: by the reflector now, as `fresh` says (rows, who, request, sampling), or in
    the file `how.stored`, see `stored_reflections`, or not at all.
    """
    if how["reflection"] != "stored":
        return run.ask(name, *fresh) if how["reflection"] == "fresh" else None
    known = run.read(f"{name}_stored", how["stored"], stored_row, Row)
    found = partial(stored_reflections, most=most, every=every)
    number = rows.count * most
    return run.gather(name, rows, found, Sample, given=known, most=number, why=NONE_STORED)


def retried(
    run: Run,
    name: str,
    said: Records[Sample] | None,
    answers: Records[Sample],
    prompts: Records[Prompt],
    policy: Policy,
    how: Mapping[str, Any],
) -> Records[Sample]:
    """Another attempt after each thing said of an answer; at each answer where nothing was."""
    show = run.config.show_attempt
    wanted = partial(revise_messages, show_attempt=show, reflected=said is not None)
    rows = answers if said is None else said.join(answers)
    return run.ask(name, rows.join(prompts), policy, wanted, how)


def chained(samples: Records[Sample], links: Iterable[Records]) -> View:
    """Rows of a sample with what is linked to it: its verdict, what it followed, and so on."""
    chain: View = samples
    for link in links:
        chain = chain.join(link)
    return chain


# A story is (revision, its verdict, reflection, answer, prompt); without reflections it has none.
Story = tuple[Sample, Verdict, Sample, Sample, Prompt]


def wrong(row: tuple[Sample, Verdict]) -> bool:
    """An answer that the task's checker calls wrong."""
    return not row[1].correct


def answer_of(row: tuple[Sample, Verdict]) -> list[Sample]:
    """The answer in a row."""
    return [row[0]]


def succeeded(story: Story) -> bool:
    """A reflection after which the revision was right: a member of D+."""
    return story[1].correct


def revision(story: Story) -> list[Sample]:
    """The answer after the reflection."""
    return [story[0]]


def reflection_lesson(story: Story) -> list[Example]:
    """(question, answer) -> reflection: the first pass of two-stage training."""
    _, _, reflection, answer, prompt = story
    asked = reflect_messages((answer, prompt))
    return [lesson(prompt, reflection, asked, reflection.text)]


def revise_lesson(story: Story, show_attempt: bool) -> list[Example]:
    """(question, answer, reflection) -> right answer: the second pass."""
    revision, _, reflection, answer, prompt = story
    asked = revise_messages((reflection, answer, prompt), show_attempt, True)
    return [lesson(prompt, revision, asked, revision.text)]


def whole_lesson(story: Story) -> list[Example]:
    """(question, answer) -> reflection, then the right answer: one-stage training."""
    revision, _, reflection, answer, prompt = story
    told = f"{reflection.text.strip()}\n\n{revision.text.strip()}"
    return [lesson(prompt, revision, whole_messages((answer, prompt)), told)]


def corpus_table(stories: Sequence[Story]) -> list[Row]:
    """What was gathered of each task, and of all: the statistics of ReflectEvo-460k.

    questions: those answered wrong at first; reflections: on all wrong answers; corrected: the
    share of later tries that were right (with reflections: D+); pairs: of D+-; the others are mean
    lengths in words.
    """
    tasks: dict[str, list[Story]] = {}
    for story in stories:
        tasks.setdefault(story[-1].task, []).append(story)
    everything = {"all tasks": list(stories)} if len(tasks) > 1 else {}
    return [
        Row.make(source_id=task, values={"task": task, **_corpus(found)})
        for task, found in (tasks | everything).items()
    ]


def _corpus(stories: Sequence[Story]) -> dict[str, Any]:
    texts = {
        "question": [asked_of(prompt) for *_, prompt in stories],
        "answer_1": [answer.text for *_, answer, _ in stories],
        "reflection": [said.text for _, _, *between, _, _ in stories for said in between],
        "answer_2": [revision.text for revision, *_ in stories],
    }
    return {
        "questions": len({prompt.id for *_, prompt in stories}),
        "reflections": len(texts["reflection"]),
        "corrected": round(sum(map(succeeded, stories)) / len(stories), 4),
        "pairs": len(helped_against_not([story for story in stories if len(story) == 5])),
        **{name: _mean_words(found) for name, found in texts.items() if found},
    }


def _mean_words(texts: Sequence[str]) -> float:
    return round(sum(len(text.split()) for text in texts) / len(texts), 1)


def helped_against_not(stories: Sequence[Story]) -> list[Pair]:
    """D+-: of one answer, reflections after which it was mended against those after which not.

    One that stands on both sides (the answer after it was drawn) is on none.
    """
    pairs: list[Pair] = []
    for told in _by_answer(stories):
        good = {_said(story): story for story in reversed(told) if succeeded(story)}
        bad = {_said(story): story for story in reversed(told) if not succeeded(story)}
        helped = [good[text] for text in reversed(good) if text not in bad]
        not_helped = [bad[text] for text in reversed(bad) if text not in good]
        pairs += map(reflection_pair, helped, not_helped)
    return pairs


def _by_answer(stories: Sequence[Story]) -> list[list[Story]]:
    """The stories of each answer to a question."""
    groups: dict[str, list[Story]] = {}
    for story in stories:
        groups.setdefault(story[3].id, []).append(story)
    return list(groups.values())


def _said(story: Story) -> str:
    return story[2].text.strip()


def rivals(stories: Sequence[Story]) -> list[Pair]:
    """Pairs of different reflections on one answer that both led to a right one: for a judge.

    Each reflection is in one pair at most; which side it is on says nothing yet.
    """
    found: list[Pair] = []
    for told in _by_answer(stories):
        different = list({_said(story): story for story in told if succeeded(story)}.values())
        found += map(reflection_pair, different[::2], different[1::2])
    return found


def contest(pair: Pair) -> Contest:
    """Two rivals as a judge sees them."""
    return Contest("", pair.prompt[-1]["content"], pair.chosen, pair.rejected)


def preferred(row: tuple[Pair, Comparison]) -> list[Pair]:
    """Dpref: the reflection that the judge prefers; nothing where it sees no difference."""
    pair, judged = row
    if judged.verdict == "first":
        return [pair]
    return [_turned(pair)] if judged.verdict == "second" else []


def _turned(pair: Pair) -> Pair:
    """The opposite preference."""
    return Pair.make(
        prompt_id=pair.prompt_id, chosen_id=pair.rejected_id, rejected_id=pair.chosen_id,
        prompt=pair.prompt, chosen=pair.rejected, rejected=pair.chosen,
    )  # fmt: skip


def reflection_pair(chosen: Story, rejected: Story) -> Pair:
    """A preference between two reflections on one answer."""
    _, _, reflection, answer, prompt = chosen
    return Pair.make(
        prompt_id=prompt.id,
        chosen_id=reflection.id,
        rejected_id=rejected[2].id,
        prompt=tuple(reflect_messages((answer, prompt))),
        chosen=reflection.text.strip(),
        rejected=rejected[2].text.strip(),
    )


def stored_reflections(
    rows: Sequence[tuple[Sample, Prompt]], stored: Sequence[Row], most: int, every: bool
) -> list[Sample]:
    """The first `most` reflections that a file has for the question of each row (answer, prompt).

    With `every`, rows without one are a UserError; else they give nothing.
    """
    known: dict[str, dict[str, None]] = {}
    for row in stored:
        known.setdefault(row.values["question"].strip(), {})[row.values["reflection"]] = None
    found = [list(_stored(known, asked_of(prompt)))[:most] for _, prompt in rows]
    lacking = [prompt for (_, prompt), texts in zip(rows, found, strict=True) if not texts]
    if every and lacking:
        raise UserError(
            f"{len(lacking)} of {len(rows)} questions have no stored reflection, the first is "
            f"{asked_of(lacking[0])[:60]!r}: give one for each, or have fresh ones"
        )
    return [
        Sample.make(
            prompt_id=prompt.id, parent_id=answer.id, text=text, tokens=(), logps=(),
            finish="stop", seed=0, policy="stored",
        )
        for (answer, prompt), texts in zip(rows, found, strict=True)
        for text in texts
    ]  # fmt: skip


def _stored(known: Mapping[str, Iterable[str]], question: str) -> Iterable[str]:
    """What is known of the very question, as it is asked or without the ending of its style."""
    for ending in ENDINGS:
        bare = question.removesuffix(ending).strip() if question.endswith(ending) else None
        if bare in known:
            return known[bare]
    return ()


def stored_row(row: Mapping[str, Any]) -> Row:
    """A row of a file of reflections: {question, reflection}, or a published one of D+."""
    text, question = row.get("reflection", row.get("reflections")), row.get("question")
    text = text[-1] if isinstance(text, list) and text else text
    if not isinstance(text, str) or not isinstance(question, str) or not question.strip():
        raise UserError(f"a stored reflection needs question and reflection: {str(row)[:80]}")
    return Row.make(source_id=question, values={"question": question, "reflection": text})


def belief(row: tuple[Sample, Sample]) -> list[Verdict]:
    """(what was said of an answer, the answer): whether it is believed to be right."""
    said, answer = row
    word = BELIEF.match(said.text)
    parsed = word and word[1].lower()
    yes = parsed == "yes"
    return [Verdict.make(sample_id=answer.id, score=float(yes), correct=yes, parsed=parsed)]


def outcome(row: tuple[Any, ...], variant: str, turn: int) -> list[Row]:
    """Of one question: right at turn 1 (`first`), at this turn (`later`), at any so far (`ever`).

    `verified`: right where one stops at the first answer that is believed. row: this turn's answer
    and its verdict; answer, verdict and belief of each turn before it, the last one first, and what
    was said between them; the prompt.
    """
    marks = [part for part in row if isinstance(part, Verdict)]
    right = [mark.correct for mark in (marks[0], *marks[1::2])][::-1]
    beliefs = marks[2::2][::-1]
    stopped = (was for was, belief in zip(right, beliefs, strict=False) if belief.correct)
    values = {"variant": variant, "turn": turn, "first": right[0], "later": right[-1]}
    values |= {"ever": any(right), "verified": next(stopped, right[-1])}
    values["unread"] = sum(belief.parsed is None for belief in beliefs)
    return [Row.make(source_id=row[-1].id, values=values)]


def turns_table(rows: Sequence[Row], oracle: bool, variants: Sequence[str] = ()) -> list[Row]:
    """Accuracy at turn 1 and later, without and with self-verification, and the flips. `unread`
    verifications said neither yes nor no, and were taken for no.

    `oracle` adds what a checker at test time would give, who lets right answers stand: a bound that
    cannot fall from turn to turn, never the result. `variants` without rows were not trained.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row.values["variant"], row.values["turn"]), []).append(row.values)
    tested = {variant for variant, _ in groups}
    untrained = [{"variant": v, "not_trained": LACKING[v]} for v in variants if v not in tested]
    found = [_turns(*named, values, oracle) for named, values in groups.items()]
    return [
        Row.make(source_id=f"{values['variant']}/{values.get('turn', 0)}", values=values)
        for values in (*found, *untrained)
    ]


def _turns(
    variant: str, turn: int, found: Sequence[Mapping[str, Any]], oracle: bool
) -> dict[str, Any]:
    n = len(found)
    values = {
        "variant": variant,
        "turn": turn,
        "n": n,
        **share("acc_t1", sum(v["first"] for v in found), n),
        **share("acc", sum(v["later"] for v in found), n),
        **_gain("gain", found, "later"),
        **share("acc_self_verified", sum(v["verified"] for v in found), n),
        **_gain("gain_self_verified", found, "verified"),
        "unread": sum(v["unread"] for v in found),
        "right_to_wrong": sum(v["first"] and not v["later"] for v in found),
        "wrong_to_right": sum(v["later"] and not v["first"] for v in found),
    }
    if oracle:
        values |= share("acc_oracle", sum(v["ever"] for v in found), n)
        values |= _gain("gain_oracle", found, "ever")
    return values


def _gain(name: str, found: Sequence[Mapping[str, Any]], after: str) -> dict[str, float]:
    """What `after` gained over turn 1, with its paired interval."""
    gained = gain([(v["first"], v[after]) for v in found])
    return {key.replace("gain", name, 1): value for key, value in gained.items()}
