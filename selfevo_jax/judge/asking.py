"""How a judge's model is asked for a verdict: by the probability of its labels, or by its words.

`labels` (the rule): the reply is forced up to the verdict's place and the labels' probabilities
are read there; where the prompt wants reasons, the model writes them first. `text` is for servers
that tell no probabilities; it is used where it was asked for, never because the other is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.failures import RequestsFailed
from selfevo_jax.sample.protocol import Generator, LabelRequest, Request, SamplingParams
from selfevo_jax.text.prompt_files import PromptFile
from selfevo_jax.text.tokenizer import Tokenizer

VERDICT_TOKENS = 16  # room for the words of a verdict
NO_ANSWER = "the judge gave no answer"
Messages = tuple[Mapping[str, str], ...]
Spoken = Callable[[str, Sequence[str]], str | None]


@dataclass(frozen=True)
class JudgeModel:
    """A model that judges: any generator, under the name that verdicts carry.

    With its `tokenizer`, inputs longer than `max_length` tokens are cut inside their declared
    fields; without (a server's is not known), the server has to refuse what is too long. Labels
    that have less than `least_mass` of the probability are an abstention, which is a failure.
    """

    name: str
    generator: Generator
    tokenizer: Tokenizer | None = None
    max_length: int | None = None
    verdict: Literal["labels", "text"] = "labels"
    least_mass: float = 0.01

    def __post_init__(self) -> None:
        if (self.tokenizer is None) != (self.max_length is None):
            raise UserError(f"judge {self.name}: give tokenizer and max_length, or neither")
        if self.verdict not in ("labels", "text"):
            raise UserError(f"judge {self.name}: verdict {self.verdict!r} must be labels or text")
        if self.verdict == "labels" and not hasattr(self.generator, "labels"):
            raise UserError(
                f"judge {self.name}: it tells no label probabilities; configure verdict=text to "
                "have its words read instead"
            )

    def cap(
        self, prompt: PromptFile, id: str, variants: Sequence[Mapping[str, str]], reserve: int = 0
    ) -> int | None:
        """What `PromptFile.cap` says when the verdict and `reserve` tokens must fit as well."""
        if self.tokenizer is None or self.max_length is None:
            return None
        reasoned = reasoning_tokens(prompt)
        if self.verdict == "text" or reasoned:
            reserve += VERDICT_TOKENS + reasoned
        prefix = "" if reasoned else self.lead + prompt.parts.get("verdict", "")
        return prompt.cap(self.tokenizer, id, variants, self.max_length - reserve, prefix)

    @property
    def lead(self) -> str:
        """What parts a forced reply from the prompt where no template does."""
        return "\n" if self.tokenizer is not None and self.tokenizer.chat is None else ""

    def write(
        self, asked: Mapping[str, tuple[Messages, str]], tokens: int, stop: tuple[str, ...] = ()
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The greedy reply to each (messages, forced beginning), at most `tokens` long.

        And, by key too, why there is none where a server has refused to give one.
        """
        sampling = SamplingParams(max_new_tokens=tokens, temperature=0.0, stop=stop)
        requests = (
            Request(key, messages, sampling, prefix=prefix)
            for key, (messages, prefix) in asked.items()
        )
        answers, refused = gathered(self.generator.generate(requests))
        return {key: done.text for key, done in answers.items()}, refused


def gathered(answers: Iterator[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The answers by id, and by id the reasons of those that a server has not given."""
    found: dict[str, Any] = {}
    try:
        for answer in answers:
            found[answer.id] = answer
    except RequestsFailed as error:  # raised when all others are there
        return found, dict(error.failed)
    return found, {}


@dataclass(frozen=True)
class Reading:
    """`p`: probability of the first of two labels, None for a failure; `mass`: that of both.

    `reply` is what the judge wrote, "" where it wrote nothing.
    """

    p: float | None
    mass: float | None
    reply: str
    failure: str | None


def reasoning_tokens(prompt: PromptFile) -> int:
    """How many tokens the judge may write before its verdict; 0: none."""
    return int(prompt.head.get("reasoning", "0"))


def read_verdicts(
    model: JudgeModel, prompt: PromptFile, asked: Mapping[str, Messages], spoken: Spoken
) -> dict[str, Reading]:
    """The reading of every prompt, by its key.

    The two labels are those of the prompt's head. `spoken` finds the label in a written verdict.
    """
    tokens = reasoning_tokens(prompt)
    if model.verdict == "text":
        words = {key: (messages, "") for key, messages in asked.items()}
        replies, refused = model.write(words, tokens + VERDICT_TOKENS)
        read = {key: _read_words(text, prompt, spoken) for key, text in replies.items()}
        return {key: read.get(key) or _silent(key, refused) for key in asked}
    forced = model.lead + prompt.part("verdict")
    if not tokens:
        return _weighed(model, prompt, {key: (m, forced, "") for key, m in asked.items()})
    reasons, refused = model.write(
        {key: (messages, model.lead) for key, messages in asked.items()},
        tokens,
        (prompt.part("stop"),),
    )
    silent = {key: _silent(key, refused) for key in asked if key not in reasons}
    return silent | _weighed(
        model,
        prompt,
        {key: (asked[key], _after(text, model, forced), text) for key, text in reasons.items()},
    )


def _after(reasons: str, model: JudgeModel, forced: str) -> str:
    reasons = reasons.strip()
    return f"{model.lead}{reasons}\n{forced.lstrip()}" if reasons else forced


def _weighed(
    model: JudgeModel, prompt: PromptFile, asked: Mapping[str, tuple[Messages, str, str]]
) -> dict[str, Reading]:
    """Readings of (messages, forced reply, what of it the judge wrote)."""
    labels = prompt.listed("labels")
    # After a colon a word has its space with it; after a bracket it has none.
    gap = "" if prompt.part("verdict").endswith("(") else " "
    requests = (
        LabelRequest(key, messages, tuple(gap + label for label in labels), prefix)
        for key, (messages, prefix, _) in asked.items()
    )
    answers, refused = gathered(model.generator.labels(requests))
    return {
        key: _read_logps(answers[key].logps, reply, model.least_mass)
        if key in answers
        else _silent(key, refused, reply)
        for key, (_, _, reply) in asked.items()
    }


def _silent(key: str, refused: Mapping[str, str], reply: str = "") -> Reading:
    return Reading(None, None, reply, refused.get(key, NO_ANSWER))


def _read_logps(logps: Sequence[float], reply: str, least_mass: float) -> Reading:
    """A server says -inf of a label that is not among its likeliest tokens: no probability."""
    if any(math.isnan(logp) or logp == math.inf for logp in logps):
        return Reading(None, None, reply, "a label's probability is no number")
    first, second = logps
    mass = math.exp(first) + math.exp(second)
    if mass < least_mass or mass == 0.0:
        return Reading(None, mass, reply, f"abstained: both labels have a share of {mass:.2g}")
    return Reading(1.0 / (1.0 + math.exp(min(second - first, 700.0))), mass, reply, None)


def _read_words(reply: str, prompt: PromptFile, spoken: Spoken) -> Reading:
    labels = prompt.listed("labels")
    label = spoken(reply, labels)
    if label is None:
        return Reading(None, None, reply, "its reply holds no verdict, or more than one")
    return Reading(1.0 if label == labels[0] else 0.0, None, reply, None)
