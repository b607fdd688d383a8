"""`JaxGenerator`: text generation and scoring on this machine's devices.

queue.py    requests -> prompts, grouped        session.py  jobs -> decoding rows -> answers
reader.py   given texts and labels -> scores    beams.py    beam search
memory.py   decoding rows                       prompts.py  prompts read, and shared
network.py  the model                           device.py   what is compiled
select.py   the next token                      stops.py    stop strings
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import unstack_layers
from selfevo_jax.models.lora import Adapter, stack_adapters
from selfevo_jax.parallel.mesh import BATCH_AXES
from selfevo_jax.parallel.rules import one_layer, path_name, shardings
from selfevo_jax.sample.memory import Memory, TextScore, cache_lengths
from selfevo_jax.sample.network import Network
from selfevo_jax.sample.prompts import Passage
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
from selfevo_jax.sample.session import Progress, Session
from selfevo_jax.text.tokenizer import Tokenizer

FLOAT32 = Compute()
# Tokens of a prompt that are read together, at most: enough for fast matrix products, few enough
# that little of a chunk stays empty.
CHUNKS, CHUNK = {"cpu": 128}, 512


class JaxGenerator:
    """A `Generator` that decodes up to `slots` requests together.

    `params` is a parameter tree (layers stacked, or already apart). `adapter` is applied on top
    of it for requests that name none, and one of `adapters` for those that name it; all are
    decoded together. A prompt and its answer have at most `max_length` tokens. `prompt_rows`
    prompts are kept to be shared, and read at most `chunk` tokens at a time (None: what suits the
    platform); `steps` tokens are decoded between two looks at the queue. A completion depends
    on its request, on these five numbers and on the adapters, not on the other requests. With a
    `mesh`, parameters and caches are split over it.
    Raises `UserError` when the numbers do not suit the model or the mesh.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        tokenizer: Tokenizer,
        *,
        adapter: Adapter | None = None,
        adapters: Mapping[str, Adapter] | None = None,
        slots: int = 32,
        max_length: int = 1024,
        compute: Compute = FLOAT32,
        mesh: jax.sharding.Mesh | None = None,
        prompt_rows: int = 8,
        chunk: int | None = None,
        steps: int = 8,
    ) -> None:
        check_model(config, tokenizer, max_length)
        _check_rows(mesh, slots=slots, prompt_rows=prompt_rows)
        self._tokenizer, self._max_length = tokenizer, max_length
        self._slots, self._prompt_rows, self._steps = slots, prompt_rows, steps
        self._chunk = chunk or CHUNKS.get(jax.default_backend(), CHUNK)
        known, self._adapters = numbered(adapter, adapters)
        stack = stack_adapters(known) if known else None
        if stack is not None and mesh is not None:
            placed = jax.device_put(stack.params, shardings(stack.params, mesh))
            stack = stack.replace(params=placed)
        self._network = Network(config, _ready_params(params, compute, mesh), stack, compute, mesh)
        self._spare: list[Memory] = []
        self._scoring: Memory | None = None  # of `score_tokens`, made at its first call
        self._prompt_tokens_read = 0

    @property
    def prompt_tokens_read(self) -> int:
        """How many prompt tokens were computed so far, all calls together."""
        return self._prompt_tokens_read

    @property
    def max_length(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self._max_length

    @property
    def prompt_rows(self) -> int:
        """How many prompts are kept, and texts scored together."""
        return self._prompt_rows

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion for every request, in order of finishing.

        `requests` is read a little ahead of the decoding, never as a whole. Raises `UserError`
        naming the request when its prompt does not fit.
        """
        for step in self.stream(requests):
            yield from (news.completion for news in step if news.completion is not None)

    def stream(
        self,
        requests: Iterable[Request],
        cancelled: Callable[[Request], bool] = lambda request: False,
    ) -> Iterator[list[Progress]]:
        """`generate`, step by step: what each call of the device brought, for a server.

        `requests` may have more after it ended once. A request for which `cancelled` is true
        gets no completion; its row is free at the next step.
        """
        window = 4 * max(self._slots, self._prompt_rows)
        lengths = cache_lengths(self._max_length)
        queue = Queue(
            requests, self._tokenizer,
            lengths=lengths, adapters=self._adapters, slots=self._slots,
            max_length=self._max_length, window=window,
        )  # fmt: skip
        with self._memory() as memory:
            session = Session(
                memory, queue, self._tokenizer,
                slots=self._slots, prompts=self._prompt_rows, steps=self._steps,
                vocab=self._network.config.vocab_size, cancelled=cancelled,
            )  # fmt: skip
            yield from session.run()

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """Log-probabilities of given completions, in the order of the requests.

        Raises `UserError` naming the request when prompt and completion do not fit.
        """
        with self._memory() as memory:
            yield from self._reader().score(memory, requests)

    def labels(self, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        """Label probabilities after given prompts, in the order of the requests.

        Raises `UserError` naming the request when its prompt does not fit, or when two labels
        begin with the same token.
        """
        with self._memory() as memory:
            yield from self._reader().labels(memory, requests)

    def score_tokens(
        self, texts: Sequence[tuple[int, ...]], top: int, adapters: Sequence[str | None]
    ) -> list[TextScore]:
        """Scores of all tokens but the first of `texts[i]`, as `adapters[i]` (see `Request`) reads
        them, with the `top` likeliest tokens in each place.

        At most `prompt_rows` texts of at most `max_length` tokens; while `stream` runs, too.
        """
        if self._scoring is None or not self._scoring.whole:
            self._scoring = self._new_memory(slots=0)
        numbers = [self._adapters[name] for name in adapters]
        passages = [Passage(tuple(text), n) for text, n in zip(texts, numbers, strict=True)]
        return self._scoring.score(passages, [1] * len(passages), top)

    def _reader(self) -> Reader:
        return Reader(self._tokenizer, self._max_length, self._prompt_rows, self._adapters)

    @contextlib.contextmanager
    def _memory(self) -> Iterator[Memory]:
        """Memory left by an earlier call, with the prompts it knows, or a new one."""
        memory = self._spare.pop() if self._spare else self._new_memory(self._slots)
        before = memory.tokens_read
        try:
            yield memory
        finally:
            self._prompt_tokens_read += memory.tokens_read - before
            if memory.whole and not self._spare:
                self._spare.append(memory)

    def _new_memory(self, slots: int) -> Memory:
        return Memory(self._network, slots, self._prompt_rows, self._max_length, self._chunk)


def check_model(config: ModelConfig, tokenizer: Tokenizer, max_length: int) -> None:
    """Raises `UserError` for a length or a tokenizer that does not suit the model."""
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


def _check_rows(mesh: jax.sharding.Mesh | None, **counts: int) -> None:
    split = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    for name, value in counts.items():
        if value < 1 or value % split:
            raise UserError(f"{name} {value} must be a multiple of {split}, the mesh's data x fsdp")


def _ready_params(params: dict, compute: Compute, mesh: jax.sharding.Mesh | None) -> dict:
    """Layers apart, on the mesh, and matrices in the dtype they are multiplied in."""

    def ready(tree: dict, places: dict | None) -> dict:
        def cast(path, leaf):
            matrix = path_name(path).endswith(("kernel", "embedding"))
            return leaf.astype(compute.dtype) if matrix else leaf

        placed = tree if places is None else jax.device_put(tree, places)
        return jax.tree_util.tree_map_with_path(cast, placed)

    apart, places = unstack_layers(params), None if mesh is None else shardings(params, mesh)
    # Let go one by one: where they move to other chips, there is no room for them twice.
    layers = list(apart.pop("layers"))
    each = places and one_layer(places.pop("layers"))
    ready_layers = tuple(ready(layers.pop(0), each) for _ in range(len(layers)))
    return {**ready(apart, places), "layers": ready_layers}
