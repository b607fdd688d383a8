"""One number for one conversation, in the judge's own words: single-answer grading of MT-Bench.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.1. The judge
explains itself and ends with `Rating: [[7]]`. A reply without a number from 1 to 10, or with two
different ones, is a failure: it gives no number, the lowest one least of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from selfevo_jax.judge.asking import NO_ANSWER, JudgeModel
from selfevo_jax.judge.material import neutral_fields
from selfevo_jax.judge.pointwise import HIGHEST, LOWEST, Ask
from selfevo_jax.records import Record
from selfevo_jax.text.prompt_files import PromptFile

NUMBER = r"(\d+(?:\.\d+)?)"
FORMS = (
    re.compile(rf"\[\[{NUMBER}\]\]"),
    re.compile(rf"\[{NUMBER}\]"),
)  # the second where no first
MARKER = re.compile(r"\[(The (?:Start|End) of [^\[\]]*)\]", re.IGNORECASE)


@dataclass(frozen=True)
class Conversation:
    """What is to be rated: the texts of a prompt's fields, and that prompt."""

    id: str
    prompt: PromptFile
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rating(Record):
    """A judge's number for a conversation, 1 to 10, or why there is none.

    `reply` is what the judge wrote; `cut` and `neutralised` as in a comparison.
    """

    identity: ClassVar[tuple[str, ...]] = ("item_id", "judge", "prompt", "reply")

    item_id: str
    judge: str
    prompt: str
    reply: str
    score: float | None
    failure: str | None
    cut: Mapping[str, int]
    neutralised: tuple[str, ...]


@dataclass(frozen=True)
class RatingJudge:
    """Rates conversations, greedily, `window` at a time, in replies of at most `tokens`."""

    model: JudgeModel
    tokens: int = 512
    window: int = 64

    def rate(self, conversations: Iterable[Conversation]) -> Iterator[Rating]:
        """A rating of each, in their order. Raises UserError where one cannot be made to fit."""
        source = iter(conversations)
        while window := list(islice(source, self.window)):
            asked = {one.id: self._ask(one) for one in window}
            messages = {name: (ask.messages, self.model.lead) for name, ask in asked.items()}
            replies, refused = self.model.write(messages, self.tokens)
            for one in window:
                silent = refused.get(one.id, NO_ANSWER)
                yield self._rating(one, asked[one.id], replies.get(one.id), silent)

    def _ask(self, one: Conversation) -> Ask:
        fields, changed = neutral_fields(one.fields)
        for name, text in fields.items():
            plain = MARKER.sub(r"(\1)", text)  # a prompt's own marks of where an answer ends
            if plain != text:
                changed.append(name)
            fields[name] = plain
        cap = self.model.cap(one.prompt, one.id, [fields], self.tokens)
        lost = one.prompt.lost(fields, cap)
        return Ask(one.prompt.fill(fields, cap), lost, tuple(sorted(set(changed))))

    def _rating(self, one: Conversation, ask: Ask, reply: str | None, silent: str) -> Rating:
        score, failure = (None, silent) if reply is None else read_rating(reply)
        return Rating.make(
            item_id=one.id,
            judge=self.model.name,
            prompt=one.prompt.hash,
            reply=reply or "",
            score=score,
            failure=failure,
            cut=ask.cut,
            neutralised=ask.neutralised,
        )


def read_rating(reply: str) -> tuple[float | None, str | None]:
    """(number, what is wrong with the reply): one of the two is None."""
    found = next((hits for form in FORMS if (hits := form.findall(reply))), [])
    numbers = {float(text) for text in found}
    if not numbers:
        return None, "its reply holds no [[rating]]"
    if len(numbers) > 1:
        return None, "its reply holds different ratings"
    (number,) = numbers
    if not LOWEST <= number <= HIGHEST:
        return None, f"its rating is not from {LOWEST} to {HIGHEST}"
    return number, None
