"""The device memory of one generation: decoding rows, and the prompts read for them.

Two caches of equal length: `rows` holds the sequences being decoded, `prompts` the last
prompts that were read. A prompt is read once and copied to the row of each of its samples.
New prompts first take over the beginning that they share with any prompt still in memory
(same system turn, same examples), and only the rest is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from selfevo_jax.models.attention import Cache
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import init_cache
from selfevo_jax.models.lora import Adapter
from selfevo_jax.parallel.mesh import BATCH_AXES
from selfevo_jax.sample import device

STEP = 128  # the shortest cache; lengths are multiples of it


@dataclass(frozen=True)
class Network:
    """The model as the engine runs it; `params` has its layers apart (`unstack_layers`)."""

    config: ModelConfig
    params: dict
    adapter: Adapter | None
    compute: Compute
    mesh: jax.sharding.Mesh | None

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """The context in which device functions are called."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def shared(self) -> dict:
        """The keyword arguments that `device` functions have in common."""
        return {"config": self.config, "compute": self.compute}


@dataclass(frozen=True)
class TextScore:
    """`logps[i]` of a text's scored token i; `top[i]`: the likeliest (token, logp) in its place."""

    logps: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]


class Memory:
    """Caches for `slots` decoding rows and `prompts` prompts of up to `max_length` tokens."""

    def __init__(
        self, network: Network, slots: int, prompts: int, max_length: int, chunk: int
    ) -> None:
        self._network, self._chunk = network, chunk
        self._lengths = cache_lengths(max_length)
        self._rows = self._empty(slots, self._lengths[0])
        self._prompts = self._empty(prompts, self._lengths[0])
        self._known: list[tuple[int, ...]] = [()] * prompts
        self.tokens_read = 0

    @property
    def length(self) -> int:
        """Cache slots a row, now."""
        return self._rows.layout.segments_bt.shape[1]

    @property
    def whole(self) -> bool:
        """False when a failed call has taken a cache with it."""
        if self._rows is None or self._prompts is None:
            return False
        return not any(x.is_deleted() for x in jax.tree.leaves((self._rows, self._prompts)))

    def set_length(self, length: int) -> None:
        """Makes both caches `length` long. Nothing may be decoding.

        A change empties them: read at another length, the keys and values of a known prompt
        would differ in the last bits.
        """
        if self.length != length:
            slots, prompts = len(self._rows.layout.segments_bt), len(self._known)
            self._rows = self._prompts = None  # let go before the new ones are made
            self._rows, self._prompts = self._empty(slots, length), self._empty(prompts, length)
            self._known = [()] * prompts

    def read(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Reads prompts into the prompt rows 0, 1, ...; their last token is left to decoding."""
        texts = [prompt[:-1] for prompt in prompts]
        for start_b, count_b, tokens_bt in self._chunks(texts, [len(text) for text in texts]):
            self._read_chunk(start_b, count_b, tokens_bt)

    def score(
        self, texts: Sequence[tuple[int, ...]], starts: Sequence[int], top: int = 0
    ) -> list[TextScore]:
        """Log-probabilities of tokens `text[start:]` of every text, start >= 1.

        With the `top` likeliest tokens in each place. Nothing is being decoded meanwhile.
        """
        found: list[tuple[list[float], list]] = [([], []) for _ in texts]
        read = [text[:-1] for text in texts]
        longest = max(map(len, texts))
        self.set_length(next(size for size in self._lengths if size >= longest))
        for start_b, count_b, tokens_bt in self._chunks(read, [start - 1 for start in starts]):
            first_b = [max(start - 1 - int(start_b[row]), 0) for row, start in enumerate(starts)]
            if all(first >= count_b[row] for row, first in enumerate(first_b)):
                self._read_chunk(start_b, count_b, tokens_bt)
                continue
            logps_bt, *best = self._score_chunk(texts, start_b, count_b, tokens_bt, top)
            for row, first in enumerate(first_b):
                places = row, slice(first, count_b[row])
                found[row][0].extend(logps_bt[places].tolist())
                ids, values = (array[places].tolist() for array in best)
                found[row][1].extend(
                    tuple(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)
                )
        return [TextScore(tuple(logps), tuple(best)) for logps, best in found]

    def place(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Copies prompt row `prompts[i]` to decoding row `rows[i]`."""
        size = self._rows.layout.segments_bt.shape[0]
        rows_m, sources_m = np.zeros(size, np.int32), np.zeros(size, np.int32)
        rows_m[: len(rows)], sources_m[: len(prompts)] = rows, prompts
        with self._network.on_mesh():
            self._rows = device.place(self._rows, self._prompts, rows_m, sources_m, len(rows))

    def decode(self, rows: device.Rows, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs `device.decode`: numpy (tokens [b, n], logps [b, n], live [b])."""
        with self._network.on_mesh():
            self._rows, *out = device.decode(
                self._network.params, self._network.adapter, self._rows, rows,
                steps=steps, **self._network.shared(),
            )  # fmt: skip
        tokens_bn, logps_bn, live_b = jax.device_get(out)
        return tokens_bn, logps_bn, live_b

    def _read_chunk(self, start_b, count_b, tokens_bt) -> None:
        with self._network.on_mesh():
            self._prompts = device.read_chunk(
                self._network.params, self._network.adapter, self._prompts,
                tokens_bt, start_b, count_b, **self._network.shared(),
            )  # fmt: skip

    def _score_chunk(self, texts, start_b, count_b, tokens_bt, top) -> list[np.ndarray]:
        targets_bt = np.zeros_like(tokens_bt)
        for row, text in enumerate(texts):
            targets = text[start_b[row] + 1 : start_b[row] + count_b[row] + 1]
            targets_bt[row, : len(targets)] = targets
        with self._network.on_mesh():
            self._prompts, *found = device.score_chunk(
                self._network.params, self._network.adapter, self._prompts,
                tokens_bt, start_b, count_b, targets_bt, top=top, **self._network.shared(),
            )  # fmt: skip
        return jax.device_get(found)

    def _chunks(self, texts, reusable):
        """Yields (start [b], count [b], tokens [b, t]) until all texts are in the prompt rows.

        Row b may take over at most its first `reusable[b]` tokens from earlier prompts.
        """
        done_b = self._inherit(texts, reusable)
        length_b = np.zeros_like(done_b)
        length_b[: len(texts)] = [len(text) for text in texts]
        while (done_b < length_b).any():
            count_b = np.clip(length_b - done_b, 0, self._chunk)
            tokens_bt = np.zeros((len(done_b), self._chunk), np.int32)
            for row in np.flatnonzero(count_b):
                part = texts[row][done_b[row] : done_b[row] + count_b[row]]
                tokens_bt[row, : len(part)] = part
            self.tokens_read += int(count_b.sum())
            yield done_b, count_b, tokens_bt
            done_b = done_b + count_b
        self._known[: len(texts)] = texts

    def _inherit(self, texts, reusable) -> np.ndarray:
        """Moves shared beginnings to their new rows: how many tokens every row then holds."""
        sources_b = np.arange(len(self._known), dtype=np.int32)
        keep_b = np.zeros(len(self._known), np.int32)
        for row, text in enumerate(texts):
            shared = [_common(text, known) for known in self._known]
            best = int(np.argmax(shared))
            sources_b[row], keep_b[row] = best, min(shared[best], reusable[row])
        with self._network.on_mesh():
            self._prompts = device.rearrange(self._prompts, sources_b, keep_b)
        self._known = [()] * len(self._known)
        return keep_b

    def _empty(self, rows: int, length: int) -> Cache:
        network = self._network
        return self._placed(init_cache(network.config, rows, length, network.compute.dtype))

    def _placed(self, cache: Cache) -> Cache:
        mesh = self._network.mesh
        if mesh is None:
            return cache
        split = "tensor" if self._network.config.num_kv_heads % mesh.shape["tensor"] == 0 else None
        heads, plain = NamedSharding(mesh, P(BATCH_AXES, split)), NamedSharding(mesh, P(BATCH_AXES))
        return jax.tree.map(lambda x: jax.device_put(x, heads if x.ndim == 4 else plain), cache)


def cache_lengths(max_length: int) -> tuple[int, ...]:
    """The few cache lengths in use: 128, 256, 512, ... up to `max_length`, rounded up."""
    most = -(-max_length // STEP) * STEP
    smaller = (STEP * 2**power for power in range(most.bit_length()))
    return (*(size for size in smaller if size < most), most)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The length of the common beginning."""
    end = min(len(one), len(other))
    if one[:end] == other[:end]:
        return end
    return next(index for index in range(end) if one[index] != other[index])
