"""How many tokens the models of a stage have read and written: what a stage cost, beside seconds.

Counted where text goes in and out, so every backend and every server is measured alike. Prompts
count once for each request, also where an engine read them once for several.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from selfevo_jax.sample.protocol import (
    Completion,
    Generator,
    LabelRequest,
    Labels,
    Messages,
    Request,
    Score,
    ScoreRequest,
)
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import Tokenizer


class Meter:
    """The tokens since they were last taken."""

    def __init__(self) -> None:
        self.generated = self.read = 0

    def take(self) -> dict[str, int]:
        """The counts, which then begin at nothing again."""
        counts = {"generated_tokens": self.generated, "read_tokens": self.read}
        self.generated = self.read = 0
        return counts

    def generator(self, generator: Generator, tokenizer: Tokenizer | None) -> Generator:
        """The same generator, watched. `tokenizer` is None for a model on a server."""
        return _Metered(self, generator, tokenizer)

    def embedder(
        self, embed: Callable[[list[str]], Any], tokenizer: Tokenizer
    ) -> Callable[[list[str]], Any]:
        """The same embedder, watched."""

        def watched(texts: list[str]) -> Any:
            self.read += sum(len(tokenizer.encode(text)) for text in texts)
            return embed(texts)

        return watched

    def weigher(
        self, weigh: Callable[[list[Any]], list[Any]], tokenizer: Tokenizer
    ) -> Callable[[list[Any]], list[Any]]:
        """The same weigher of (reply, prompt) rows, watched."""

        def watched(rows: list[Any]) -> list[Any]:
            found = weigh(rows)
            self.read += sum(len(render_prompt(tokenizer, prompt.messages)) for _, prompt in rows)
            self.read += sum(len(tokens["entropy"]) for tokens in found)
            return found

        return watched


@dataclass(frozen=True)
class _Metered:
    meter: Meter
    inner: Generator
    tokenizer: Tokenizer | None

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for completion in self.inner.generate(requests):
            self.meter.generated += len(completion.tokens)
            self.meter.read += completion.prompt_tokens
            yield completion

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        watched = self._prompts(requests, lambda request: "")
        for score in self.inner.score(watched):
            self.meter.read += len(score.tokens)
            yield score

    def labels(self, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        return self.inner.labels(self._prompts(requests, lambda request: request.prefix))

    def _prompts(self, requests: Iterable[Any], prefix: Callable[[Any], str]) -> Iterator[Any]:
        for request in requests:
            self.meter.read += self._length(request.messages, prefix(request))
            yield request

    def _length(self, messages: Messages | str, prefix: str) -> int:
        return len(render_prompt(self.tokenizer, messages, prefix)) if self.tokenizer else 0
