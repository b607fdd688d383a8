"""The prompts in memory: read once, found again by their beginning.

One cache row per prompt. A new prompt first takes over the beginning that it shares with any
prompt in memory (same system turn, same examples; read by the same adapter), and only the rest
is computed, `chunk` tokens at a time, or half as many where that is enough. What stands in a row
beyond a prompt's end does no harm: slot = position, and no token sees a later position than its
own.

A chunk looks at the shortest of a few spans of slots that holds it: empty slots beyond cost time
and add zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from selfevo_jax.sample import device
from selfevo_jax.sample.network import Network


@dataclass(frozen=True)
class Passage:
    """Tokens as adapter number `adapter` (-1: the base) reads them."""

    tokens: tuple[int, ...]
    adapter: int = -1


NOTHING = Passage(())


class Prompts:
    """A cache of `rows` rows of `spans[-1]` slots; on a mesh, `lanes` passages are read together,
    else one by one."""

    def __init__(self, network: Network, rows: int, spans: Sequence[int], chunk: int) -> None:
        self._network, self._chunk, self._lanes = network, chunk, network.lanes
        # Passages that are read together are not all in the same place, and may not show it.
        self._spans = spans if self._lanes == 1 else spans[-1:]
        self.cache = network.empty_cache(rows, spans[-1])
        self._known = [NOTHING] * rows
        self._used = list(range(rows))  # rows, the longest unused first
        self.tokens_read = 0

    def __len__(self) -> int:
        return len(self._known)

    def read(self, passages: Sequence[Passage]) -> list[int]:
        """Reads at most as many passages as there are rows: the row of each."""
        taken: list[int] = []
        for first in range(0, len(passages), self._lanes):
            group = passages[first : first + self._lanes]
            for _, part, span in self._parts(group, [len(p.tokens) for p in group], taken):
                self.cache = self._network.call(device.read_chunk, self.cache, part, span=span)
        return taken

    def forget(self, row: int, end: int) -> None:
        """What stands in a row from slot `end` on is written over by another, and counts no more.

        Not even where the token is the same: read alone, its keys differ in the last bits.
        """
        known = self._known[row]
        self._known[row] = Passage(known.tokens[:end], known.adapter)

    def score(
        self, passages: Sequence[Passage], starts: Sequence[int], top: int
    ) -> Iterator[tuple[list[float], list[tuple[tuple[int, float], ...]]]]:
        """For every passage: log-probabilities of its tokens from `start` >= 1 on, and the `top`
        likeliest (token, log-probability) in each of these places."""
        for first in range(0, len(passages), self._lanes):
            group = passages[first : first + self._lanes]
            yield from self._score(group, starts[first : first + self._lanes], top)

    def _score(self, group, starts, top):
        found: list[tuple[list[float], list]] = [([], []) for _ in group]
        read = [Passage(passage.tokens[:-1], passage.adapter) for passage in group]
        for done_m, part, span in self._parts(read, [start - 1 for start in starts], []):
            firsts = [max(start - 1 - done_m[lane], 0) for lane, start in enumerate(starts)]
            counts = part.count_m
            if all(first >= count for first, count in zip(firsts, counts, strict=False)):
                self.cache = self._network.call(device.read_chunk, self.cache, part, span=span)
                continue
            targets_mt = np.zeros_like(part.tokens_mt)
            for lane, passage in enumerate(group):
                targets = passage.tokens[done_m[lane] + 1 : done_m[lane] + counts[lane] + 1]
                targets_mt[lane, : len(targets)] = targets
            self.cache, *out = self._network.call(
                device.score_chunk, self.cache, part, targets_mt, span=span, top=top
            )
            logps_mt, ids_mtk, best_mtk = jax.device_get(out)
            for lane, first in enumerate(firsts):
                places = lane, slice(first, counts[lane])
                found[lane][0].extend(logps_mt[places].tolist())
                pairs = zip(ids_mtk[places].tolist(), best_mtk[places].tolist(), strict=True)
                found[lane][1].extend(tuple(zip(*pair, strict=True)) for pair in pairs)
        return found

    def _parts(
        self, group: Sequence[Passage], reusable: Sequence[int], taken: list[int]
    ) -> Iterator[tuple[np.ndarray, device.Part, int]]:
        """(tokens already there [m], part, its span) until the group is read; its rows join
        `taken`."""
        lanes = len(group)
        first = len(taken)
        done_m = np.zeros(self._lanes, np.int32)
        for lane, passage in enumerate(group):
            row, done_m[lane] = self._take_over(passage, reusable[lane], taken)
            taken.append(row)
        idle = [row for row in range(len(self)) if row not in taken[first:]]
        rows_m = np.array([*taken[first:], *idle][: self._lanes], np.int32)
        adapter_m = np.array([p.adapter for p in group] + [-1] * (self._lanes - lanes), np.int32)
        length_m = np.array([len(p.tokens) for p in group] + [0] * (self._lanes - lanes), np.int32)
        while (done_m < length_m).any():
            count_m = np.minimum(length_m - done_m, self._chunk)
            size = self._size(int(count_m.max()))
            tokens_mt = np.zeros((self._lanes, size), np.int32)
            for lane, passage in enumerate(group):
                tokens = passage.tokens[done_m[lane] : done_m[lane] + count_m[lane]]
                tokens_mt[lane, : len(tokens)] = tokens
            self.tokens_read += int(count_m.sum())
            part = device.Part(rows_m, tokens_mt, done_m, count_m, adapter_m)
            yield done_m, part, self._span(int((done_m + count_m).max()))
            done_m = done_m + count_m
        for row, passage in zip(taken[first:], group, strict=True):
            if self._known[row].tokens[: len(passage.tokens)] != passage.tokens:
                self._known[row] = passage

    def _size(self, left: int) -> int:
        half = (self._chunk + 1) // 2
        return self._chunk if left > half else half

    def _span(self, end: int) -> int:
        return next(span for span in self._spans if span >= end)

    def _take_over(self, passage: Passage, most: int, taken: list[int]) -> tuple[int, int]:
        """(row, tokens it already holds) for a passage; the row is none of `taken`."""
        shared = [
            _common(passage.tokens, known.tokens) if known.adapter == passage.adapter else 0
            for known in self._known
        ]
        source = int(np.argmax(shared))
        common = shared[source]
        inside = common in (len(self._known[source].tokens), len(passage.tokens))
        row = source if common and inside and source not in taken else self._oldest(taken, source)
        keep = min(common, most)
        if keep and row != source:
            with self._network.on_mesh():
                self.cache = device.repeat(self.cache, row, source)
        if row != source or common < len(passage.tokens):
            self._known[row] = NOTHING  # until it is read
        self._used.remove(row)
        self._used.append(row)
        return row, keep

    def _oldest(self, taken: list[int], source: int) -> int:
        """The row unused for longest; `source` only if there is no other."""
        free = [row for row in self._used if row not in taken]
        return next((row for row in free if row != source), free[0])


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The length of the common beginning."""
    end = min(len(one), len(other))
    if one[:end] == other[:end]:
        return end
    return next(index for index in range(end) if one[index] != other[index])
