"""What `sample.memory.Memory` is to the engine's host code, on a transformers decoder.

Two caches of equal length, of the rows being decoded and of prompts read for them. Cache slot =
position in the sequence, and a row sees its own slots alone, so what stands beyond does no harm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selfevo_jax.sample.device import Out, Rows
from selfevo_jax.sample.memory import TextScore, cache_lengths
from selfevo_jax.sample.prompts import Passage
from selfevo_jax.sample.select import Around
from selfevo_jax.torch_backend.lora import Lora, mixed
from selfevo_jax.torch_backend.model import Decoder, Layout
from selfevo_jax.torch_backend.select import next_tokens, penalised, uniforms


class RowCache:
    """Keys and values per layer, [rows, kv heads, length, head dim], written at given places.

    It has the one method that transformers' attention calls.
    """

    def __init__(self, decoder: Decoder, rows: int, length: int) -> None:
        config = decoder.config
        shape = (rows, config.num_kv_heads, length, config.head_dim)
        self.keys, self.values = (
            [
                torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
                for _ in range(config.num_layers)
            ]
            for _ in range(2)
        )
        self._rows: slice = slice(None)
        self._slots_bt = torch.zeros((0, 0), dtype=torch.long)

    def write_at(self, rows: slice, slots_bt: Tensor) -> None:
        """Where the tokens of the next forward pass belong."""
        self._rows, self._slots_bt = rows, slots_bt

    def update(self, key_bkth: Tensor, value_bkth: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Takes in a layer's new keys and values: all of these rows'."""
        row_b1 = torch.arange(key_bkth.shape[0], device=key_bkth.device)[:, None]
        found = []
        for caches, new in ((self.keys, key_bkth), (self.values, value_bkth)):
            rows_bksh = caches[layer][self._rows]
            rows_bksh[row_b1, :, self._slots_bt] = new.transpose(1, 2)
            found.append(rows_bksh)
        return found[0], found[1]


class TorchMemory:
    """Caches for `slots` decoding rows and `prompts` prompts of up to `max_length` tokens."""

    def __init__(
        self, decoder: Decoder, loras: Sequence[Lora], slots: int, prompts: int, max_length: int
    ) -> None:
        self._decoder, self._loras = decoder, loras
        self._slots, self._prompts = slots, prompts
        self._lengths = cache_lengths(max_length)
        self._length = 0
        self.set_length(self._lengths[0])

    def length_of(self, tokens: int) -> int:
        """The shortest cache that holds so many tokens."""
        return next(size for size in self._lengths if size >= tokens)

    def set_length(self, length: int) -> None:
        """Makes both caches `length` long and empty. Nothing may be decoding."""
        if self._length != length:
            self._length = length
            self._row_cache = RowCache(self._decoder, self._slots, length)
            self._prompt_cache = RowCache(self._decoder, self._prompts, length)

    @torch.no_grad()
    def read(self, passages: Sequence[Passage]) -> list[int]:
        """Reads prompts, but for their last token, which is left to decoding: the row of each."""
        for row, passage in enumerate(passages):
            if len(passage.tokens) > 1:
                tokens_bt = self._tensor([passage.tokens[:-1]])
                positions_bt = torch.arange(tokens_bt.shape[1], device=tokens_bt.device)[None]
                rows, adapter_b = slice(row, row + 1), [passage.adapter]
                self._cached(self._prompt_cache, rows, tokens_bt, positions_bt, adapter_b)
        return list(range(len(passages)))

    def place(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Copies prompt row `prompts[i]` to decoding row `rows[i]`."""
        for to, source in (
            (self._row_cache.keys, self._prompt_cache.keys),
            (self._row_cache.values, self._prompt_cache.values),
        ):
            for mine, read in zip(to, source, strict=True):
                mine[list(rows)] = read[list(prompts)]

    @torch.no_grad()
    def decode(
        self, rows: Rows, seen_bv: np.ndarray | None, steps: int, top: int
    ) -> tuple[Out, np.ndarray]:
        """Up to `steps` tokens for every live row: what came out, which rows live on [b]."""
        token_b, position_b = rows.token_b.copy(), rows.position_b.copy()
        count_b, live_b = rows.count_b.copy(), rows.live_b.copy()
        seen_bv = None if seen_bv is None else seen_bv.copy()
        columns = []
        for _ in range(steps):
            if not live_b.any():
                break
            scores_bv = self._scores(token_b, position_b, rows.adapter_b)
            lowered = scores_bv
            if seen_bv is not None:
                lowered = penalised(scores_bv, seen_bv, rows.penalty_b)
            chosen_b = next_tokens(lowered, rows.rules, uniforms(rows, count_b))
            columns.append(_described(scores_bv, chosen_b, live_b, top))
            token_b = np.where(live_b, chosen_b.cpu().numpy(), token_b).astype(np.int32)
            if seen_bv is not None:
                seen_bv[np.arange(len(token_b)), token_b] = True
            count_b, position_b = count_b + live_b, position_b + live_b
            ended_b = (rows.stops_be == token_b[:, None]).any(1) | (count_b >= rows.limit_b)
            live_b = live_b & ~ended_b
        return _out(columns, top), live_b

    @torch.no_grad()
    def expand(
        self, rows: Rows, copies: Sequence[tuple[int, int]], top: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Memory.expand`: a step of beam search, after `copies` (row, source) of rows."""
        for layer in (*self._row_cache.keys, *self._row_cache.values):
            layer[[row for row, _ in copies]] = layer[[source for _, source in copies]]
        scores_bv = self._scores(rows.token_b, rows.position_b, rows.adapter_b)
        best_bk, ids_bk = _likeliest(scores_bv.log_softmax(-1), top)
        return ids_bk.cpu().numpy(), best_bk.cpu().numpy()

    @torch.no_grad()
    def score(
        self, passages: Sequence[Passage], starts: Sequence[int], top: int = 0
    ) -> list[TextScore]:
        """Log-probabilities of the tokens from `start` >= 1 on, and the `top` likeliest there."""
        found = []
        for passage, start in zip(passages, starts, strict=True):
            logps_tv = self._logps(passage.tokens[:-1], passage.adapter)[start - 1 :]
            targets = self._tensor(passage.tokens[start:])
            logps = logps_tv.gather(1, targets[:, None])[:, 0].tolist()
            best, ids = logps_tv.topk(top, -1)
            pairs = zip(ids.tolist(), best.tolist(), strict=True)
            tops = tuple(tuple(zip(*pair, strict=True)) for pair in pairs)
            found.append(TextScore(tuple(logps), tops))
        return found

    @torch.no_grad()
    def weigh(
        self, passages: Sequence[Passage], ids: Sequence[tuple[int, ...]]
    ) -> list[tuple[float, ...]]:
        """The log-probability of every token of `ids[i]` right after passage i."""
        return [
            tuple(self._logps(passage.tokens, passage.adapter)[-1][list(wanted)].tolist())
            for passage, wanted in zip(passages, ids, strict=True)
        ]

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._decoder.device)

    def _acting(self, adapter_b: Sequence[int] | np.ndarray) -> contextlib.AbstractContextManager:
        self._decoder.module.eval()
        return mixed(self._decoder, self._loras, adapter_b)

    def _logps(self, tokens: Sequence[int], adapter: int) -> Tensor:
        """What each place says of the next token, float32 [t, v]; no cache is used."""
        tokens_bt = self._tensor([tokens])
        layout = _plain(torch.arange(len(tokens), device=tokens_bt.device)[None])
        with self._acting([adapter]):
            hidden_btd = self._decoder.hidden(tokens_bt, layout, layout)
        return self._decoder.logits(hidden_btd)[0].log_softmax(-1)

    def _scores(self, token_b: np.ndarray, position_b: np.ndarray, adapter_b: np.ndarray) -> Tensor:
        tokens_bt, positions_bt = self._tensor(token_b)[:, None], self._tensor(position_b)[:, None]
        hidden_btd = self._cached(self._row_cache, slice(None), tokens_bt, positions_bt, adapter_b)
        return self._decoder.logits(hidden_btd)[:, 0]

    def _cached(
        self,
        cache: RowCache,
        rows: slice,
        tokens_bt: Tensor,
        positions_bt: Tensor,
        adapter_b: Sequence[int] | np.ndarray,
    ) -> Tensor:
        cache.write_at(rows, positions_bt)
        places_bs = torch.arange(self._length, device=tokens_bt.device)
        places_bs = places_bs.expand(tokens_bt.shape[0], -1)
        with self._acting(adapter_b):
            return self._decoder.hidden(tokens_bt, _plain(positions_bt), _plain(places_bs), cache)


def _plain(positions_bt: Tensor) -> Layout:
    ones_bt = torch.ones_like(positions_bt)
    return Layout(positions_bt, ones_bt, torch.zeros_like(ones_bt))


def _described(scores_bv: Tensor, chosen_b: Tensor, live_b: np.ndarray, top: int) -> tuple:
    """(tokens [b], -1 where dead; logps [b]; the likeliest, entropy and margin, if asked)."""
    logps_bv = scores_bv.log_softmax(-1)
    logp_b = logps_bv.gather(1, chosen_b[:, None])[:, 0]
    column = [np.where(live_b, chosen_b.cpu().numpy(), -1), logp_b.cpu().numpy()]
    if top:
        best_bk, ids_bk = _likeliest(logps_bv, top)
        entropy_b = -(logps_bv.exp() * logps_bv).sum(-1)
        margin_b = best_bk[:, 0].exp() - best_bk[:, 1].exp()
        column += [x.cpu().numpy() for x in (ids_bk, best_bk, entropy_b, margin_b)]
    return tuple(column)


def _likeliest(logps_bv: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest log-probabilities [b, k] and their tokens; fewer in a small vocabulary."""
    return logps_bv.topk(min(top, logps_bv.shape[1]), -1)


def _out(columns: list[tuple], top: int) -> Out:
    stacked = [np.stack(parts, 1) for parts in zip(*columns, strict=True)]
    return Out(stacked[0], stacked[1], Around(*stacked[2:]) if top else None)
