"""What a method sees of text generation: requests in, completions and scores out.

Engines behind `Generator` may batch, reorder and stream as they like; a completion depends
only on its request (messages, sampling, seed), never on what else was asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from selfevo_jax.errors import UserError

Messages = Sequence[Mapping[str, str]]
MAX_STOP_TOKENS = 16
MAX_LABELS = 64
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    `temperature` 0 takes the most likely token. Otherwise logits are divided by it, then cut
    to the `top_k` largest (0: all), then to the smallest set that holds `top_p` of what is
    left, then to tokens at least `min_p` times as likely as the first (Nguyen et al., 2024,
    arXiv:2407.01082): the order of `transformers`. Before all that, the logits of tokens that
    stand in the prompt or the answer so far are divided by `repetition_penalty` where positive
    and multiplied by it where negative (Keskar et al., 2019, arXiv:1909.05858).

    Text ends before the first of the `stop` strings, after a stop token (the tokenizer's end
    tokens and `stop_token_ids`), or at `max_new_tokens`.

    `top_logprobs` asks for so many of the likeliest tokens in every place; `details` for the
    entropy and the margin there (see `Completion`). `num_beams` > 1 searches instead of drawing:
    see beams.py; the other rules must then be left as they are.
    Raises `UserError` for a value out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    top_logprobs: int = 0
    details: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise UserError(f"sampling.stop must be a list of strings, not {self.stop!r} itself")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _integer("max_new_tokens", self.max_new_tokens, 1)
        _integer("top_k", self.top_k, 0)
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, above=True)
        _number("length_penalty", self.length_penalty, -math.inf, math.inf)
        _integer("top_logprobs", self.top_logprobs, 0)
        if self.top_logprobs > MAX_TOP_LOGPROBS:
            raise UserError(
                f"sampling.top_logprobs {self.top_logprobs} must be at most {MAX_TOP_LOGPROBS}"
            )
        _integer("num_beams", self.num_beams, 1)
        if self.num_beams > 1:
            self._check_beams()
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise UserError(f"sampling.stop {self.stop!r} must hold strings that are not empty")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0)

    def _check_beams(self) -> None:
        drawing = (self.temperature, self.top_k, self.top_p, self.min_p)
        plain = drawing in ((1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0))
        others = self.repetition_penalty != 1 or self.top_logprobs or self.details or self.stop
        if not plain or others:
            raise UserError(
                f"sampling.num_beams {self.num_beams} searches for the likeliest answer: leave "
                "temperature, top_k, top_p, min_p, repetition_penalty, top_logprobs, details and "
                "stop out"
            )


@dataclass(frozen=True)
class Request:
    """One completion to sample. `prefix` is text the assistant's answer starts with.

    `messages` that are one string are a text to go on with, as it is: no chat template.
    `tokens`, when given, is the whole prompt as ids; `messages` and `prefix` are then not read.
    `adapter` names one of the engine's adapters (of a server, the model of that name); None is
    what the engine does by itself.
    """

    id: str
    messages: Messages | str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    prefix: str = ""
    tokens: tuple[int, ...] | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UserError(f"request {self.id!r}: seed {self.seed!r} must be a whole number")


@dataclass(frozen=True)
class Completion:
    """A sampled answer.

    `text` has no stop string and no special tokens (nor the request's prefix). `tokens` are
    the tokens it was cut from, a stop token included where one ended it; `logps[i]` is the
    log-probability (natural, untempered, over the whole vocabulary) of `tokens[i]`.
    `prompt_tokens` counts the rendered prompt.

    Where asked for, and over the same whole, untempered, unpenalised softmax p of every place:
    `top_logprobs[i]` has the likeliest (token, log-probability), best first; `entropies[i]` is
    -sum p log p in nats; `margins[i]` is the largest p less the second largest.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Literal["stop", "length"]
    prompt_tokens: int
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    entropies: tuple[float, ...] | None = None
    margins: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """A given completion whose log-probability is wanted, with its end of turn if `end`.

    `messages` as in `Request`. Requests that differ in their completion only should follow each
    other: engines then read the prompt once.
    """

    id: str
    messages: Messages | str
    completion: str
    end: bool = True
    adapter: str | None = None


@dataclass(frozen=True)
class Score:
    """`logps[i]`: log-probability of `tokens[i]`, the rendered completion as it was asked for."""

    id: str
    logps: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class LabelRequest:
    """A place whose next token is to be weighed: right after the prompt and the forced `prefix`.

    `messages` as in `Request`. Each label counts by its first token there, so the labels must
    differ in it. Raises `UserError` for no label, more than `MAX_LABELS`, or an empty one.
    """

    id: str
    messages: Messages | str
    labels: tuple[str, ...]
    prefix: str = ""
    adapter: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            raise UserError(f"request {self.id!r}: labels must be a list, not {self.labels!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        if not 1 <= len(self.labels) <= MAX_LABELS:
            raise UserError(
                f"request {self.id!r}: 1 to {MAX_LABELS} labels, not {len(self.labels)}"
            )
        if any(not isinstance(label, str) or not label for label in self.labels):
            raise UserError(f"request {self.id!r}: labels {self.labels!r} must be texts, not empty")


@dataclass(frozen=True)
class Labels:
    """`logps[i]`: log-probability (natural, over the whole vocabulary) of label i's first token."""

    id: str
    logps: tuple[float, ...]


class Generator(Protocol):
    """Samples and scores. All take requests lazily and yield results as they finish."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion for every request, in order of finishing."""
        ...

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """One score for every request."""
        ...

    def labels(self, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        """The labels' probabilities for every request."""
        ...


def _integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"sampling.{name} {value!r} must be a whole number of at least {least}")


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """`value` in [low, high], or ]low, high] when `above`; never infinite or NaN."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    inside = low < number if above else low <= number
    if not inside or number > high or math.isinf(number):
        border = "above" if above else "at least"
        top = "" if high == math.inf else f" and at most {high:g}"
        raise UserError(f"sampling.{name} {value!r} must be a number {border} {low:g}{top}")
