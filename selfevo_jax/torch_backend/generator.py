"""`TorchGenerator`: the engine's queue, decoding rows and readers over a transformers decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from selfevo_jax.errors import UserError
from selfevo_jax.models.lora import Adapter
from selfevo_jax.sample.engine import check_model
from selfevo_jax.sample.memory import cache_lengths
from selfevo_jax.sample.protocol import (
    Completion,
    LabelRequest,
    Labels,
    Request,
    Score,
    ScoreRequest,
)
from selfevo_jax.sample.queue import Queue, numbered
from selfevo_jax.sample.reader import Reader
from selfevo_jax.sample.session import Session
from selfevo_jax.text.tokenizer import Tokenizer
from selfevo_jax.torch_backend.lora import Lora
from selfevo_jax.torch_backend.memory import TorchMemory
from selfevo_jax.torch_backend.model import Decoder


class TorchGenerator:
    """A `Generator` that decodes up to `slots` requests together.

    `adapter` acts for requests that name none, and one of `adapters` for those that name it; all
    are decoded together. A completion depends on its request, `slots`, `max_length` and the
    adapters, not on the other requests; drawn tokens differ from `JaxGenerator`'s, whose random
    numbers are others. Raises `UserError` for numbers that do not suit the model.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        adapter: Adapter | None = None,
        adapters: Mapping[str, Adapter] | None = None,
        slots: int = 32,
        max_length: int = 1024,
        prompt_rows: int = 8,
        steps: int = 8,
    ) -> None:
        check_model(decoder.config, tokenizer, max_length)
        if slots < 1 or prompt_rows < 1:
            raise UserError(f"slots {slots} and prompt_rows {prompt_rows} must be at least 1")
        self._decoder, self._tokenizer = decoder, tokenizer
        self._slots, self._steps, self._prompt_rows = slots, steps, prompt_rows
        self.max_length = max_length
        known, self._adapters = numbered(adapter, adapters)
        self._loras = [Lora(decoder, one) for one in known]

    def close(self) -> None:
        """Takes the adapters out of the decoder; the generator is of no more use."""
        for lora in self._loras:
            lora.remove()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion for every request, in order of finishing; `requests` is read lazily."""
        queue = Queue(
            requests, self._tokenizer,
            lengths=cache_lengths(self.max_length), adapters=self._adapters, slots=self._slots,
            max_length=self.max_length, window=4 * max(self._slots, self._prompt_rows),
        )  # fmt: skip
        session = Session(
            self._memory(self._slots), queue, self._tokenizer,
            slots=self._slots, prompts=self._prompt_rows, steps=self._steps,
            vocab=self._decoder.config.vocab_size, cancelled=lambda request: False,
        )  # fmt: skip
        for step in session.run():
            yield from (news.completion for news in step if news.completion is not None)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """Log-probabilities of given completions, in the order of the requests."""
        yield from self._reader().score(self._memory(0), requests)

    def labels(self, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        """Label probabilities after given prompts, in the order of the requests."""
        yield from self._reader().labels(self._memory(0), requests)

    def _memory(self, slots: int) -> TorchMemory:
        return TorchMemory(self._decoder, self._loras, slots, self._prompt_rows, self.max_length)

    def _reader(self) -> Reader:
        return Reader(self._tokenizer, self.max_length, self._prompt_rows, self._adapters)
