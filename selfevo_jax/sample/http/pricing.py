"""What a job would cost: the job itself, with nobody to ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from selfevo_jax.sample.protocol import (
    Completion,
    LabelRequest,
    Labels,
    Request,
    Score,
    ScoreRequest,
)

LETTERS_A_TOKEN = 4
UNSURE = (-1.5, -0.25)  # log-probabilities of the first label and of all others


@dataclass(frozen=True)
class Estimate:
    """What a job would cost: `cached` requests nothing, the others these tokens.

    `prompt_tokens` is a guess (four bytes a token), `completion_tokens` and `money` the most.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.requests + other.requests,
            self.cached + other.cached,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.money + other.money,
        )

    def __str__(self) -> str:
        unknown = not self.money and self.prompt_tokens
        money = "prices not given" if unknown else f"at most {self.money:.4f} in money"
        return (
            f"{self.requests} requests, {self.cached} of them cached; about {self.prompt_tokens} "
            f"prompt tokens, at most {self.completion_tokens} completion tokens, {money}"
        )


class Priced(Protocol):
    """What prices requests of each kind, as `HttpGenerator` does."""

    def price(self, requests: Iterable[Request]) -> Estimate: ...

    def price_scores(self, requests: Iterable[ScoreRequest]) -> Estimate: ...

    def price_labels(self, requests: Iterable[LabelRequest]) -> Estimate: ...


class DryRun:
    """A `Generator` in the place of `priced` that asks nobody; `estimate` has what it was asked.

    It gives no answers, or, with `answers`, the longest ones there can be, for a job that asks
    again about what it was told (a judge its reasons): nonsense, and the last label the likelier.
    """

    def __init__(self, priced: Priced, *, answers: bool = False) -> None:
        self.estimate = Estimate()
        self._priced, self._answers = priced, answers

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See the class."""
        asked = list(requests)
        self.estimate += self._priced.price(asked)
        for request in asked if self._answers else ():
            text = "x" * (LETTERS_A_TOKEN * request.sampling.max_new_tokens)
            yield Completion(request.id, text, (), (), "length", 0)

    def labels(self, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        """See the class."""
        asked = list(requests)
        self.estimate += self._priced.price_labels(asked)
        for request in asked if self._answers else ():
            first, others = UNSURE
            yield Labels(request.id, (first, *(others for _ in request.labels[1:])))

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """See the class; scores lead to no further question."""
        self.estimate += self._priced.price_scores(requests)
        yield from ()
