"""Reflection in words and in records: the instruction pool, the requests, what is curated.

The pool has 2 x 8 x 2 instructions with keys `v-e-p`: how to verify, which kind of error to look
for, how concrete the plan is (ReflectEvo; the wording is ours).
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.lessons import lesson
from selfevo_jax.evolve.settings import prompt_file
from selfevo_jax.evolve.tables import gain, share
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


# A story is (revision, its verdict, reflection, answer, prompt).
Story = tuple[Sample, Verdict, Sample, Sample, Prompt]


def wrong(row: tuple[Sample, Verdict]) -> bool:
    """An answer that the task's checker calls wrong."""
    return not row[1].correct


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

    questions: those answered wrong at first; reflections: on all of them; corrected: the share
    after which the answer was right (D+); pairs: of D+-; the others are mean lengths in words.
    """
    tasks: dict[str, list[Story]] = {}
    for story in stories:
        tasks.setdefault(story[4].task, []).append(story)
    everything = {"all tasks": list(stories)} if len(tasks) > 1 else {}
    return [
        Row.make(source_id=task, values={"task": task, **_corpus(found)})
        for task, found in (tasks | everything).items()
    ]


def _corpus(stories: Sequence[Story]) -> dict[str, Any]:
    texts = {
        "question": [asked_of(prompt) for *_, prompt in stories],
        "answer_1": [answer.text for _, _, _, answer, _ in stories],
        "reflection": [reflection.text for _, _, reflection, _, _ in stories],
        "answer_2": [revision.text for revision, *_ in stories],
    }
    return {
        "questions": len({prompt.id for *_, prompt in stories}),
        "reflections": len(stories),
        "corrected": round(sum(map(succeeded, stories)) / len(stories), 4),
        "pairs": len(helped_against_not(stories)),
        **{name: _mean_words(found) for name, found in texts.items()},
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


def rivals(stories: Sequence[Story]) -> list[tuple[Story, Story]]:
    """Pairs of different reflections on one answer that both led to a right one: for a judge."""
    found: list[tuple[Story, Story]] = []
    for told in _by_answer(stories):
        different = list({_said(story): story for story in told if succeeded(story)}.values())
        found += zip(different[::2], different[1::2], strict=False)
    return found


def preferred(row: tuple[list[Story], Comparison]) -> list[Pair]:
    """Dpref: the reflection that the judge prefers; nothing where it sees no difference."""
    stories, verdict = row
    first, second = rivals(stories)[0]
    if verdict.verdict == "first":
        return [reflection_pair(first, second)]
    return [reflection_pair(second, first)] if verdict.verdict == "second" else []


def rival_contest(stories: list[Story]) -> Contest:
    """The first two rivals of a group as a judge sees them."""
    first, second = rivals(stories)[0]
    asked = reflect_messages((first[3], first[4]))[-1]["content"]
    return Contest("", asked, first[2].text, second[2].text)


def has_rivals(stories: list[Story]) -> bool:
    """Whether there is something to judge."""
    return bool(rivals(stories))


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


def stored_reflection(row: tuple[Sample, Prompt], stored: Sequence[Row]) -> list[Sample]:
    """The reflection that a file has for the question of a row (answer, prompt), if it has one."""
    answer, prompt = row
    for found in stored:
        if found.values["question"].strip() in asked_of(prompt):
            return [Sample.make(
                prompt_id=prompt.id, parent_id=answer.id, text=found.values["reflection"],
                tokens=(), logps=(), finish="stop", seed=0, policy="stored",
            )]  # fmt: skip
    return []


def stored_row(row: Mapping[str, Any]) -> Row:
    """A row of a file of reflections: {question, reflection}, or a published one of D+."""
    text = row.get("reflection", row.get("reflections"))
    text = text[-1] if isinstance(text, list) and text else text
    if not isinstance(text, str) or not isinstance(row.get("question"), str):
        raise UserError(f"a stored reflection needs question and reflection: {str(row)[:80]}")
    return Row.make(
        source_id=row["question"], values={"question": row["question"], "reflection": text}
    )


def belief(row: tuple[Sample, Sample]) -> list[Verdict]:
    """(what was said of an answer, the answer): whether it is believed to be right."""
    said, answer = row
    word = BELIEF.match(said.text)
    parsed = word and word[1].lower()
    yes = parsed == "yes"
    return [Verdict.make(sample_id=answer.id, score=float(yes), correct=yes, parsed=parsed)]


def outcome(row: tuple[Any, ...], variant: str, turn: int) -> list[Row]:
    """Of one question: right at turn 1, right at this turn, and whether turn 1 was believed.

    row: (revision, its verdict, ..., first answer, its verdict, belief in it, prompt).
    """
    _, second, *_, first, believed, prompt = row
    values = {"variant": variant, "turn": turn, "first": first.correct, "later": second.correct}
    values |= {"believed": believed.correct, "unread": believed.parsed is None}
    return [Row.make(source_id=prompt.id, values=values)]


def turns_table(rows: Sequence[Row], oracle: bool) -> list[Row]:
    """Accuracy at turn 1 and later, without and with self-verification, and the flips. `unread`
    verifications said neither yes nor no, and were taken for no.

    `oracle` adds what a checker at test time would give, who lets right answers stand: a bound that
    cannot fall below turn 1, never the result.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row.values["variant"], row.values["turn"]), []).append(row.values)
    return [
        Row.make(source_id=f"{variant}/{turn}", values=_turns(variant, turn, found, oracle))
        for (variant, turn), found in groups.items()
    ]


def _turns(
    variant: str, turn: int, found: Sequence[Mapping[str, Any]], oracle: bool
) -> dict[str, Any]:
    n = len(found)
    verified = [(v["first"], v["first"] if v["believed"] else v["later"]) for v in found]
    values = {
        "variant": variant,
        "turn": turn,
        "n": n,
        **share("acc_t1", sum(v["first"] for v in found), n),
        **share("acc", sum(v["later"] for v in found), n),
        **gain([(v["first"], v["later"]) for v in found]),
        "acc_self_verified": sum(later for _, later in verified) / n,
        "unread": sum(v["unread"] for v in found),
        "right_to_wrong": sum(v["first"] and not v["later"] for v in found),
        "wrong_to_right": sum(v["later"] and not v["first"] for v in found),
    }
    if oracle:
        values["acc_oracle"] = sum(v["first"] or v["later"] for v in found) / n
    return values
