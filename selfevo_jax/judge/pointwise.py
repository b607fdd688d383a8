"""Marks for one output at a time: METEOR's five criteria, 1 to 10 each, as JSON.

Criteria after Li et al. (METEOR: accuracy, completeness, relevance, coherence, reliability). A
reply is used only when it is one object with every criterion and nothing else, each a whole number
in range. A reply that is not gets one chance to be written again; after that the output has no
marks and counts as a failure. No mark is ever invented, the lowest one least of all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from selfevo_jax.errors import UserError
from selfevo_jax.judge.asking import NO_ANSWER, JudgeModel
from selfevo_jax.judge.material import neutral_fields
from selfevo_jax.records import Record
from selfevo_jax.text.prompt_files import PromptFile, read_prompt

PROMPTS = Path(__file__).parent / "prompts"
LOWEST, HIGHEST = 1, 10
REPLY_TOKENS = 128
FAULT = "FAULT"  # stands in the repair message where the fault is named


@dataclass(frozen=True)
class Marked:
    """One output to mark; `reference` where the prompt wants one."""

    id: str
    instruction: str
    output: str
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Grades(Record):
    """The marks of one output: `marks` by criterion and their mean, or why there are none.

    `replies` are what the judge wrote, one or two; `cut` and `neutralised` as in a comparison.
    """

    identity: ClassVar[tuple[str, ...]] = ("item_id", "judge", "prompt", "replies")

    item_id: str
    judge: str
    prompt: str
    replies: tuple[str, ...]
    marks: Mapping[str, int] | None
    mean: float | None
    failure: str | None
    cut: Mapping[str, int]
    neutralised: tuple[str, ...]


@dataclass(frozen=True)
class Ask:
    """One rendered question to the judge, and what was done to its texts."""

    messages: tuple[Mapping[str, str], ...]
    cut: Mapping[str, int]
    neutralised: tuple[str, ...]


def rubric(with_reference: bool = False) -> PromptFile:
    """The prompt of the five criteria."""
    name = "rubric_reference" if with_reference else "rubric"
    return read_prompt(PROMPTS / f"pointwise_{name}.txt")


@dataclass(frozen=True)
class PointwiseJudge:
    """Marks outputs with `prompt`, whose head names the criteria; `window` at a time."""

    model: JudgeModel
    prompt: PromptFile
    window: int = 64

    def grade(self, outputs: Iterable[Marked]) -> Iterator[Grades]:
        """The marks of every output, in their order.

        Raises UserError for an output without the reference that the prompt needs, or one that
        does not fit even without the fields that may be cut.
        """
        source = iter(outputs)
        while window := list(islice(source, self.window)):
            asked = {output.id: self._ask(output) for output in window}
            replies, refused = self._replies(asked)
            for name, ask in asked.items():
                yield self._grades(name, ask, replies[name], refused.get(name, NO_ANSWER))

    def _replies(
        self, asked: Mapping[str, Ask]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
        """The replies to each (two where the first was of no use), and why there are none."""
        lead = self.model.lead
        first, refused = self.model.write(
            {name: (ask.messages, lead) for name, ask in asked.items()}, REPLY_TOKENS
        )
        faults = {name: read_marks(text, self.criteria)[1] for name, text in first.items()}
        again = {
            name: (self._again(asked[name], first[name], fault), lead)
            for name, fault in faults.items()
            if fault is not None
        }
        second, _ = self.model.write(again, REPLY_TOKENS) if again else ({}, {})
        both = ([found[name] for found in (first, second) if name in found] for name in asked)
        replies = {name: tuple(texts) for name, texts in zip(asked, both, strict=True)}
        return replies, refused

    def _again(self, ask: Ask, reply: str, fault: str) -> tuple[Mapping[str, str], ...]:
        request = self.prompt.part("repair").replace(FAULT, fault)
        return (
            *ask.messages,
            {"role": "assistant", "content": reply},
            {"role": "user", "content": request},
        )

    @property
    def criteria(self) -> tuple[str, ...]:
        """What is marked."""
        return self.prompt.listed("criteria")

    def _ask(self, output: Marked) -> Ask:
        fields = {"instruction": output.instruction, "output": output.output}
        if "reference" in self.prompt.fields:
            if output.reference is None:
                raise UserError(f"{output.id}: prompt {self.prompt.name} needs a reference")
            fields["reference"] = output.reference
        fields, changed = neutral_fields(fields)
        # The repair's turns must fit as well: the reply, the request and their markup.
        cap = self.model.cap(self.prompt, output.id, [fields], self._reserve())
        lost = self.prompt.lost(fields, cap)
        return Ask(self.prompt.fill(fields, cap), lost, tuple(sorted(changed)))

    def _reserve(self) -> int:
        tokenizer = self.model.tokenizer
        repair = 0 if tokenizer is None else len(tokenizer.encode(self.prompt.part("repair")))
        return 2 * REPLY_TOKENS + repair + MARKUP_TOKENS

    def _grades(self, name: str, ask: Ask, replies: tuple[str, ...], silent: str) -> Grades:
        marks, fault = read_marks(replies[-1], self.criteria) if replies else (None, silent)
        return Grades.make(
            item_id=name,
            judge=self.model.name,
            prompt=self.prompt.hash,
            replies=replies,
            marks=marks,
            mean=None if marks is None else round(sum(marks.values()) / len(marks), 6),
            failure=fault,
            cut=ask.cut,
            neutralised=ask.neutralised,
        )


MARKUP_TOKENS = 96  # of two more turns, and of the fault's name


def read_marks(reply: str, criteria: Sequence[str]) -> tuple[dict[str, int] | None, str | None]:
    """(marks, None) of a reply that holds exactly one set of marks; (None, its fault) otherwise."""
    objects = list(_objects(reply))
    if not objects:
        return None, "it holds no JSON object"
    if any(found != objects[0] for found in objects):
        return None, "it holds more than one JSON object"
    marks = dict(objects[0])
    if len(marks) != len(objects[0]):
        return None, "a criterion comes twice"
    odd = sorted(set(marks) ^ set(criteria))
    if odd:
        return None, f"missing or unknown: {', '.join(odd)[:80]}"
    for name in criteria:
        mark = marks[name]
        if isinstance(mark, bool) or not isinstance(mark, int) or not LOWEST <= mark <= HIGHEST:
            return None, f"{name} is not a whole number from {LOWEST} to {HIGHEST}"
    return {name: marks[name] for name in criteria}, None


def _objects(text: str) -> Iterator[list[tuple[str, Any]]]:
    """The outermost JSON objects in a text, as lists of their pairs."""
    decoder = json.JSONDecoder(object_pairs_hook=list)
    place = text.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError):
            end = place + 1
        else:
            yield found
        place = text.find("{", end)
