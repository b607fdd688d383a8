"""What is learned from reflections: stories of second tries, sorted by whether they helped.

D+ are the reflections after which the answer was right, D+- those against others on the same
answer, Dpref what a judge prefers among those of D+ (ReflectEvo). Pure functions of stories.
"""

from collections.abc import Sequence
from typing import Any

from selfevo_jax.evolve.lessons import lesson
from selfevo_jax.evolve.reflection import (
    asked_of,
    reflect_messages,
    revise_messages,
    whole_messages,
)
from selfevo_jax.judge.pairwise import Comparison, Contest
from selfevo_jax.records import Example, Pair, Prompt, Row, Sample, Verdict

ALL_RIGHT = "every answer was right, so that there is nothing to reflect on"

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
    lengths in words. Without any story a row says so.
    """
    if not stories:
        return [Row.make(source_id="nothing", values={"task": "all tasks", "nothing": ALL_RIGHT})]
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
