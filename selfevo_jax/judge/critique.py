"""Is an output right, and if not, how could it be mended?

`critique`: the judge writes its criticism, then its verdict is read. `advice` (METEOR's teacher):
the verdict first, and advice only for what is wrong. The verdict is the probability of "right"
against "wrong" at a fixed place, so a critique that says "right" somewhere decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

from selfevo_jax.errors import UserError
from selfevo_jax.judge.asking import (
    JudgeModel,
    Reading,
    read_verdicts,
    reasoning_tokens,
)
from selfevo_jax.judge.material import neutral_fields
from selfevo_jax.judge.pointwise import Ask, Marked
from selfevo_jax.records import Record
from selfevo_jax.text.prompt_files import PromptFile, read_prompt

PROMPTS = Path(__file__).parent / "prompts"
KINDS = ("critique", "advice")
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Opinion(Record):
    """What a judge says of one output: `right` and its probability, or why it said nothing.

    `text` is the criticism, or the advice for an output that is wrong ("" for one that is right).
    """

    identity: ClassVar[tuple[str, ...]] = ("item_id", "judge", "prompt", "p_right", "text")

    item_id: str
    judge: str
    prompt: str
    p_right: float | None
    right: bool | None
    text: str
    failure: str | None
    cut: Mapping[str, int]
    neutralised: tuple[str, ...]


def critic_prompt(kind: str) -> PromptFile:
    """The prompt of "critique" or "advice". Raises UserError for another name."""
    if kind not in KINDS:
        raise UserError(f"{kind!r} must be one of {', '.join(KINDS)}")
    return read_prompt(PROMPTS / f"{kind}.txt")


@dataclass(frozen=True)
class Critic:
    """Says right or wrong of outputs, with words; `window` at a time, words of at most `tokens`."""

    model: JudgeModel
    prompt: PromptFile
    tokens: int = 256
    window: int = 64

    def review(self, outputs: Iterable[Marked]) -> Iterator[Opinion]:
        """An opinion of every output, in their order. Raises UserError as other judges do."""
        source = iter(outputs)
        while window := list(islice(source, self.window)):
            asked = {output.id: self._ask(output) for output in window}
            messages = {name: ask.messages for name, ask in asked.items()}
            readings = read_verdicts(self.model, self.prompt, messages, spoken_verdict)
            words = self._words(asked, readings)
            for name, ask in asked.items():
                yield self._opinion(name, ask, readings[name], words.get(name))

    def _words(self, asked: Mapping[str, Ask], readings: Mapping[str, Reading]) -> dict[str, str]:
        """What goes with each verdict: what led to it, or advice for what is wrong."""
        if "advice" not in self.prompt.parts:
            return {name: reading.reply.strip() for name, reading in readings.items()}
        forced = f"{self.model.lead}{self.prompt.part('verdict')} {self._wrong}\n"
        forced += self.prompt.part("advice")
        wrong = {
            name: (asked[name].messages, forced)
            for name, reading in readings.items()
            if reading.p is not None and reading.p <= 0.5
        }
        written, _ = self.model.write(wrong, self.tokens) if wrong else ({}, {})
        return {name: text.strip() for name, text in written.items()}

    @property
    def _wrong(self) -> str:
        return self.prompt.listed("labels")[1]

    def _ask(self, output: Marked) -> Ask:
        given = {"instruction": output.instruction, "output": output.output}
        fields, changed = neutral_fields(given)
        reserve = 0 if reasoning_tokens(self.prompt) else self.tokens + FORCED_TOKENS
        cap = self.model.cap(self.prompt, output.id, [fields], reserve)
        lost = self.prompt.lost(fields, cap)
        return Ask(self.prompt.fill(fields, cap), lost, tuple(sorted(changed)))

    def _opinion(self, name: str, ask: Ask, reading: Reading, words: str | None) -> Opinion:
        p, failure = reading.p, reading.failure
        right = None if p is None else p > 0.5
        advised = "advice" in self.prompt.parts
        if advised and right is False and not words:
            right, failure = None, "it says wrong and gives no advice"
        return Opinion.make(
            item_id=name,
            judge=self.model.name,
            prompt=self.prompt.hash,
            p_right=None if p is None else round(p, DIGITS),
            right=right,
            text=words or "",
            failure=failure,
            cut=ask.cut,
            neutralised=ask.neutralised,
        )


FORCED_TOKENS = 16  # of the words that the advice is made to begin with


def spoken_verdict(reply: str, labels: Sequence[str]) -> str | None:
    """The label after "Verdict:"; None where no line says it, or two lines differ."""
    choices = "|".join(map(re.escape, labels))
    said = re.findall(rf"verdict\W*:\W*({choices})\b", reply, re.IGNORECASE)
    found = {text.lower() for text in said}
    return found.pop() if len(found) == 1 else None
