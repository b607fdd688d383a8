"""Requests that only read: scores of given texts, and the weights of labels at one place.

A window of requests is sorted before it is read, so that texts read together need caches of
one length (what a text scores then never depends on its neighbours), and so that texts with a
common beginning follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

from selfevo_jax.errors import UserError
from selfevo_jax.sample.memory import Memory
from selfevo_jax.sample.prompts import Passage
from selfevo_jax.sample.protocol import LabelRequest, Labels, Score, ScoreRequest
from selfevo_jax.sample.queue import adapter_number
from selfevo_jax.text.render import render_example, render_next, render_prompt
from selfevo_jax.text.tokenizer import Tokenizer

Found = TypeVar("Found")
WINDOW = 16  # batches that are sorted together


@dataclass(frozen=True)
class Text:
    """What to read for request `id`; tokens from `start` on are asked about.

    `labels` are ids whose probability after the whole text is wanted.
    """

    id: str
    passage: Passage
    start: int
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reader:
    """Reads `rows` texts of at most `max_length` tokens together."""

    tokenizer: Tokenizer
    max_length: int
    rows: int
    adapters: Mapping[str | None, int]

    def score(self, memory: Memory, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """One score a request, in their order."""

        def read(texts: Sequence[Text]) -> list[Score]:
            found = memory.score([text.passage for text in texts], [text.start for text in texts])
            return [
                Score(text.id, score.logps, text.passage.tokens[text.start :])
                for text, score in zip(texts, found, strict=True)
            ]

        return self._read(memory, map(self._given, requests), read)

    def labels(self, memory: Memory, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        """One answer a request, in their order."""

        def read(texts: Sequence[Text]) -> list[Labels]:
            found = memory.weigh([text.passage for text in texts], [text.labels for text in texts])
            return [Labels(text.id, logps) for text, logps in zip(texts, found, strict=True)]

        return self._read(memory, map(self._asked, requests), read)

    def _read(
        self, memory: Memory, texts: Iterator[Text], read: Callable[[Sequence[Text]], list[Found]]
    ) -> Iterator[Found]:
        while window := list(islice(texts, WINDOW * self.rows)):
            tokens = [text.passage.tokens for text in window]
            length = [memory.length_of(len(read)) for read in tokens]
            order = sorted(range(len(window)), key=lambda i: (length[i], tokens[i]))
            found: dict[int, Found] = {}
            for _, group in groupby(order, key=length.__getitem__):
                while batch := list(islice(group, self.rows)):
                    found |= zip(batch, read([window[i] for i in batch]), strict=True)
            yield from (found[i] for i in range(len(window)))

    def _given(self, request: ScoreRequest) -> Text:
        example = render_example(
            self.tokenizer, request.id, request.messages, [request.completion],
            self.max_length, request.end,
        )  # fmt: skip
        prompt, answer = example.prompt.tokens.tolist(), example.completions[0].tokens.tolist()
        number = adapter_number(self.adapters, request.id, request.adapter)
        return Text(request.id, Passage((*prompt, *answer), number), len(prompt))

    def _asked(self, request: LabelRequest) -> Text:
        prompt = render_prompt(self.tokenizer, request.messages, request.prefix)
        if not 1 <= len(prompt) <= self.max_length:
            raise UserError(
                f"request {request.id}: its prompt has {len(prompt)} tokens, not between 1 and "
                f"max_length {self.max_length}; change it or raise max_length"
            )
        number = adapter_number(self.adapters, request.id, request.adapter)
        passage = Passage(tuple(prompt), number)
        return Text(request.id, passage, len(prompt), self._first_tokens(request))

    def _first_tokens(self, request: LabelRequest) -> tuple[int, ...]:
        by_token: dict[int, str] = {}
        nexts = render_next(self.tokenizer, request.messages, request.prefix, request.labels)
        for label, ids in zip(request.labels, nexts, strict=True):
            if ids[0] in by_token:
                raise UserError(
                    f"request {request.id}: labels {by_token[ids[0]]!r} and {label!r} begin with "
                    "the same token; give labels that differ in their first token"
                )
            by_token[ids[0]] = label
        return tuple(by_token)
