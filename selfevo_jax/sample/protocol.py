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


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    `temperature` 0 takes the most likely token. Otherwise logits are divided by it, then cut
    to the `top_k` largest (0: all), then to the smallest set that holds `top_p` of what is
    left, then to tokens at least `min_p` times as likely as the first (Nguyen et al., 2024,
    arXiv:2407.01082): the order of `transformers`. Text ends before the first of the `stop`
    strings, after a stop token (the tokenizer's end tokens and `stop_token_ids`), or at
    `max_new_tokens`. Raises `UserError` for a value out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

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
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise UserError(f"sampling.stop {self.stop!r} must hold strings that are not empty")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0)


@dataclass(frozen=True)
class Request:
    """One completion to sample. `prefix` is text the assistant's answer starts with.

    `tokens`, when given, is the whole prompt as ids; `messages` and `prefix` are then not read.
    """

    id: str
    messages: Messages
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    prefix: str = ""
    tokens: tuple[int, ...] | None = None

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
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Literal["stop", "length"]
    prompt_tokens: int


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


@dataclass(frozen=True)
class Score:
    """`logps[i]`: log-probability of `tokens[i]`, the rendered completion as it was asked for."""

    id: str
    logps: tuple[float, ...]
    tokens: tuple[int, ...]


class Generator(Protocol):
    """Samples and scores. Both take requests lazily and yield results as they finish."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion for every request, in order of finishing."""
        ...

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """One score for every request."""
        ...


def _integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"sampling.{name} {value!r} must be a whole number of at least {least}")


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """`value` in [low, high], or ]low, high] when `above`; never infinite or NaN."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (low < value if above else low <= value) or value > high:
        border = "above" if above else "at least"
        top = "" if high == math.inf else f" and at most {high:g}"
        raise UserError(f"sampling.{name} {value!r} must be a number {border} {low:g}{top}")
