"""`TorchGenerator`: the engine's queue, decoding rows and readers over a transformers decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from selfevo_jax.errors import UserError
from selfevo_jax.models.lora import Adapter
from selfevo_jax.sample.memory import cache_lengths
from selfevo_jax.sample.protocol import (
    Completion,
    LabelRequest,
    Labels,
    Request,
    Score,
    ScoreRequest,
)
from selfevo_jax.sample.queue import Queue
from selfevo_jax.sample.reader import Reader
from selfevo_jax.sample.session import Session
from selfevo_jax.text.tokenizer import Tokenizer
from selfevo_jax.torch_backend.lora import Lora
from selfevo_jax.torch_backend.memory import TorchMemory
from selfevo_jax.torch_backend.model import Decoder

_ADAPTERS = {None: -1}  # the one adapter acts by itself; requests can name no other


class TorchGenerator:
    """A `Generator` that decodes up to `slots` requests together.

    A completion depends on its request, `slots` and `max_length`, not on the other requests;
    drawn tokens differ from `JaxGenerator`'s, whose random numbers are others. Beam search and
    named adapters are refused with a UserError, as are numbers that do not suit the model.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        adapter: Adapter | None = None,
        slots: int = 32,
        max_length: int = 1024,
        prompt_rows: int = 8,
        steps: int = 8,
    ) -> None:
        _check(decoder, tokenizer, slots, max_length)
        self._decoder, self._tokenizer = decoder, tokenizer
        self._slots, self._steps, self._prompt_rows = slots, steps, prompt_rows
        self.max_length = max_length
        self._lora = None if adapter is None else Lora(decoder, adapter)

    def close(self) -> None:
        """Takes the adapter out of the decoder; the generator is of no more use."""
        if self._lora is not None:
            self._lora.remove()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion for every request, in order of finishing; `requests` is read lazily."""
        queue = Queue(
            map(_without_beams, requests), self._tokenizer,
            lengths=cache_lengths(self.max_length), adapters=_ADAPTERS, slots=self._slots,
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
        return TorchMemory(self._decoder, self._lora, slots, self._prompt_rows, self.max_length)

    def _reader(self) -> Reader:
        return Reader(self._tokenizer, self.max_length, self._prompt_rows, _ADAPTERS)


def _without_beams(request: Request) -> Request:
    if request.sampling.num_beams > 1:
        raise UserError(
            f"request {request.id}: backend=torch has no beam search; leave sampling.num_beams "
            "out, or use backend=jax"
        )
    return request


def _check(decoder: Decoder, tokenizer: Tokenizer, slots: int, max_length: int) -> None:
    config = decoder.config
    if not 2 <= max_length <= config.max_position:
        raise UserError(
            f"max_length {max_length} must be at least 2 and at most the model's "
            f"{config.max_position}"
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {config.vocab_size}: "
            "they do not belong together"
        )
    if slots < 1:
        raise UserError(f"slots {slots} must be at least 1")
