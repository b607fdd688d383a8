"""The device memory of one generation: decoding rows, and the prompts read for them.

Two caches of equal length: that of the sequences being decoded, and that of the last prompts
that were read (prompts.py). A prompt is read once and copied to the row of each of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from selfevo_jax.sample import device
from selfevo_jax.sample.network import Network
from selfevo_jax.sample.prompts import Passage, Prompts
from selfevo_jax.sample.protocol import MAX_LABELS, MAX_STOP_TOKENS
from selfevo_jax.sample.select import Rules

SHORTEST = 128  # slots of the shortest cache, but for one that holds all
STEP = 64  # the longest is a multiple of it
LONG = 1024


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
        self._network, self._chunk, self._slots = network, chunk, slots
        self._lengths = cache_lengths(max_length)
        self._rows = network.empty_cache(slots, self._lengths[0]) if slots else None
        self._prompts = Prompts(network, prompts, self._lengths[:1], chunk)
        self._read_before = 0

    @property
    def length(self) -> int:
        """Cache slots a row, now."""
        return self._prompts.cache.layout.segments_bt.shape[1]

    @property
    def tokens_read(self) -> int:
        """How many prompt tokens were computed so far."""
        return self._read_before + self._prompts.tokens_read

    @property
    def whole(self) -> bool:
        """False when a failed call has taken a cache with it."""
        if self._slots and self._rows is None:
            return False
        return not any(x.is_deleted() for x in jax.tree.leaves((self._rows, self._prompts.cache)))

    def length_of(self, tokens: int) -> int:
        """The shortest cache that holds so many tokens."""
        return next(size for size in self._lengths if size >= tokens)

    def set_length(self, length: int) -> None:
        """Makes both caches `length` long. Nothing may be decoding.

        A change empties them: read at another length, the keys and values of a known prompt
        would differ in the last bits.
        """
        if self.length == length:
            return
        self._read_before, rows = self.tokens_read, len(self._prompts)
        self._rows = self._prompts.cache = None  # let go before the new ones are made
        self._rows = self._network.empty_cache(self._slots, length) if self._slots else None
        spans = self._lengths[: self._lengths.index(length) + 1]
        self._prompts = Prompts(self._network, rows, spans, self._chunk)

    def read(self, passages: Sequence[Passage]) -> list[int]:
        """Reads prompts, but for their last token, which is left to decoding: the row of each."""
        return self._prompts.read([Passage(p.tokens[:-1], p.adapter) for p in passages])

    def score(
        self, passages: Sequence[Passage], starts: Sequence[int], top: int = 0
    ) -> list[TextScore]:
        """Log-probabilities of the tokens from `start` >= 1 on of every passage.

        With the `top` likeliest tokens in each place. Nothing is being decoded meanwhile.
        """
        self.set_length(self.length_of(max(len(passage.tokens) for passage in passages)))
        found = self._prompts.score(passages, starts, top)
        return [TextScore(tuple(logps), tuple(best)) for logps, best in found]

    def weigh(
        self, passages: Sequence[Passage], ids: Sequence[tuple[int, ...]]
    ) -> list[tuple[float, ...]]:
        """The log-probability of every token of `ids[i]` right after passage i.

        At most `MAX_LABELS` tokens each. Nothing is being decoded meanwhile.
        """
        self.set_length(self.length_of(max(len(passage.tokens) for passage in passages)))
        rows = idle_rows(len(self._prompts))
        ids_bm = np.zeros((len(self._prompts), MAX_LABELS), np.int32)
        read = self.read(passages)
        for row, passage, wanted in zip(read, passages, ids, strict=True):
            self._prompts.forget(row, len(passage.tokens) - 1)
            rows.token_b[row], rows.position_b[row] = passage.tokens[-1], len(passage.tokens) - 1
            rows.live_b[row], rows.adapter_b[row] = True, passage.adapter
            ids_bm[row, : len(wanted)] = wanted
        self._prompts.cache, logps_bm = self._network.call(
            device.weigh, self._prompts.cache, rows, ids_bm
        )
        logps_bm = np.asarray(logps_bm)
        return [
            tuple(logps_bm[row, : len(wanted)].tolist())
            for row, wanted in zip(read, ids, strict=True)
        ]

    def place(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Copies prompt row `prompts[i]` to decoding row `rows[i]`."""
        copies = self._copies(list(zip(rows, prompts, strict=True)))
        with self._network.on_mesh():
            self._rows = device.place(self._rows, self._prompts.cache, copies)

    def decode(
        self, rows: device.Rows, seen_bv: np.ndarray | None, steps: int, top: int
    ) -> tuple[device.Out, np.ndarray]:
        """Runs `device.decode`: what came out and which rows live on [b], as numpy."""
        self._rows, *out = self._network.call(
            device.decode, self._rows, rows, seen_bv, steps=steps, top=self._most(top)
        )
        return tuple(jax.device_get(out))

    def expand(
        self, rows: device.Rows, copies: Sequence[tuple[int, int]], top: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Runs `device.expand`: numpy (tokens [b, k], log-probabilities [b, k]).

        `copies` are (row, source); no row of them is also a source.
        """
        self._rows, *out = self._network.call(
            device.expand, self._rows, rows, self._copies(copies), top=self._most(top)
        )
        return tuple(jax.device_get(out))

    def _copies(self, copies: Sequence[tuple[int, int]]) -> device.Copies:
        """(row, source) as arrays; at most as many as there are slots."""
        rows_m, sources_m = np.zeros((2, self._slots), np.int32)
        for index, (row, source) in enumerate(copies):
            rows_m[index], sources_m[index] = row, source
        return device.Copies(rows_m, sources_m, len(copies))

    def _most(self, top: int) -> int:
        return min(top, self._network.config.vocab_size)


def idle_rows(count: int) -> device.Rows:
    """Rows of which none is live, as numpy arrays."""
    token_b, position_b, count_b, limit_b, top_k_b = np.zeros((5, count), np.int32)
    temperature_b, top_p_b, penalty_b = np.ones((3, count), np.float32)
    return device.Rows(
        token_b=token_b, position_b=position_b, count_b=count_b, limit_b=limit_b,
        live_b=np.zeros(count, bool),
        stops_be=np.full((count, MAX_STOP_TOKENS), -1, np.int32),
        seeds_b2=np.zeros((count, 2), np.uint32),
        rules=Rules(temperature_b, top_k_b, top_p_b, np.zeros(count, np.float32)),
        penalty_b=penalty_b, adapter_b=np.full(count, -1, np.int32),
    )  # fmt: skip


def cache_lengths(max_length: int) -> tuple[int, ...]:
    """The few cache lengths in use: 128, 256, 512, 1024, 1536, 2048, 3072, ... and `max_length`,
    rounded up.

    Short ones double: what is decoded apart for less than that costs more in rows that stand
    empty than a shorter cache saves. In long ones most of a step is the reading of the cache.
    """
    most = -(-max_length // STEP) * STEP
    doubled = [SHORTEST * 2**power for power in range(most.bit_length())]
    between = [size + size // 2 for size in doubled if size >= LONG]
    smaller = [size for size in doubled + between if size * (2 if size < LONG else 4 / 3) <= most]
    return (*sorted(smaller), most)
