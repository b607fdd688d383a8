"""What runs compiled: a few pure functions over caches and rows, shared by all engines.

Every function has fixed shapes apart from the length of the caches, which comes from a short
list, so a handful of programs serves any queue. Cache slot = position in the sequence, and
rows never mix: what is computed for a row, in a cache of some length, depends on that row
alone, down to the bits (on a backend whose matrix products treat all rows of one shape
alike, as the CPU's does; `tests/sample` checks it).
"""

from __future__ import annotations

import functools
from collections import Counter

import flax.struct
import jax
import jax.numpy as jnp

from selfevo_jax.models.attention import Layout
from selfevo_jax.models.cache import Cache
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import forward_cached, logits
from selfevo_jax.models.lora import Adapter, AdapterStack
from selfevo_jax.parallel.rules import by_token_id
from selfevo_jax.sample.select import (
    Around,
    Rules,
    around,
    log_softmax_at,
    next_tokens,
    penalised,
    row_keys,
)

_traces: Counter[str] = Counter()


@flax.struct.dataclass
class Rows:
    """The state of the decoding rows, arrays [b] (numpy on the host).

    `token` is the last known token, not yet in the cache, and `position` its place; `count`
    of at most `limit` tokens were sampled; `stops` [b, e] are token ids that end the row
    (-1: none); `seeds` [b, 2] the two uint32 words of the seed; `adapter` -1 is the base.
    """

    token_b: jax.Array
    position_b: jax.Array
    count_b: jax.Array
    limit_b: jax.Array
    live_b: jax.Array
    stops_be: jax.Array
    seeds_b2: jax.Array
    rules: Rules
    penalty_b: jax.Array
    adapter_b: jax.Array


@flax.struct.dataclass
class Part:
    """Tokens for some rows of a cache: the first `count` of `tokens_mt` stand at `start`, ...

    `rows_m` are different rows; `adapter_m` as in `Rows`.
    """

    rows_m: jax.Array
    tokens_mt: jax.Array
    start_m: jax.Array
    count_m: jax.Array
    adapter_m: jax.Array


@flax.struct.dataclass
class Copies:
    """Row `sources_m[i]` is copied over row `rows_m[i]`, for the first `count` i, one by one."""

    rows_m: jax.Array
    sources_m: jax.Array
    count: int | jax.Array


@flax.struct.dataclass
class Out:
    """What `decode` chose in n places of every row, and what lay `around` it, if asked."""

    tokens_bn: jax.Array
    logps_bn: jax.Array
    around: Around | None


def compile_count() -> int:
    """How many programs this module has traced since the process started."""
    return sum(_traces.values())


@functools.partial(
    jax.jit, static_argnames=("config", "compute", "steps", "top"), donate_argnames="cache"
)
def decode(
    params: dict,
    adapters: AdapterStack | None,
    cache: Cache,
    rows: Rows,
    seen_bv: jax.Array | None = None,
    *,
    config: ModelConfig,
    compute: Compute,
    steps: int,
    top: int = 0,
) -> tuple[Cache, Out, jax.Array]:
    """Up to `steps` tokens for every live row: (cache, what came out, live [b]).

    A row that ends inside the call is frozen; places it does not reach hold token -1. With
    `seen_bv` (bool) repetition penalties act; with `top` > 0 places are described (`Out.around`).
    """
    _traces["decode"] += 1

    def go_on(carry):
        step, _, rows, *_ = carry
        return (step < steps) & rows.live_b.any()

    def one(carry):
        step, cache, rows, seen_bv, out = carry
        cache, scores_bv = _next_scores(params, adapters, cache, rows, config, compute)
        keys_b = row_keys(rows.seeds_b2, rows.count_b)
        if seen_bv is None:
            token_b, logp_b = next_tokens(scores_bv, rows.rules, keys_b)
        else:
            lowered_bv = penalised(scores_bv, seen_bv, rows.penalty_b)
            token_b, _ = next_tokens(lowered_bv, rows.rules, keys_b)
            logp_b = log_softmax_at(scores_bv, token_b)
            seen_bv = seen_bv.at[jnp.arange(len(token_b)), token_b].set(True)
        news = Out(
            jnp.where(rows.live_b, token_b, -1), logp_b, around(scores_bv, top) if top else None
        )
        out = jax.tree.map(lambda whole, new: whole.at[:, step].set(new), out, news)
        return step + 1, cache, _advance(rows, token_b), seen_bv, out

    out = _blank(rows.token_b.shape[0], steps, top)
    carry = jax.lax.while_loop(go_on, one, (0, cache, rows, seen_bv, out))
    return carry[1], carry[4], carry[2].live_b


@functools.partial(jax.jit, static_argnames=("config", "compute", "top"), donate_argnames="cache")
def expand(
    params: dict,
    adapters: AdapterStack | None,
    cache: Cache,
    rows: Rows,
    copies: Copies,
    *,
    config: ModelConfig,
    compute: Compute,
    top: int,
) -> tuple[Cache, jax.Array, jax.Array]:
    """One step of beam search, after `copies` of rows within the cache.

    (cache, the `top` likeliest next tokens [b, k], their log-probabilities [b, k]).
    """
    _traces["expand"] += 1
    cache = _copied(cache, None, copies)
    cache, scores_bv = _next_scores(params, adapters, cache, rows, config, compute)
    found = around(scores_bv, top)
    return cache, found.top_bk, found.logps_bk


@functools.partial(jax.jit, static_argnames=("config", "compute", "span"), donate_argnames="cache")
def read_chunk(
    params: dict,
    adapters: AdapterStack | None,
    cache: Cache,
    part: Part,
    *,
    config: ModelConfig,
    compute: Compute,
    span: int,
) -> Cache:
    """Puts the tokens of `part` into its rows of the cache, of which the first `span` slots hold
    all that they see."""
    _traces["read_chunk"] += 1
    return _read(params, adapters, cache, part, config, compute, span)[0]


@functools.partial(
    jax.jit, static_argnames=("config", "compute", "span", "top"), donate_argnames="cache"
)
def score_chunk(
    params: dict,
    adapters: AdapterStack | None,
    cache: Cache,
    part: Part,
    targets_mt: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    span: int,
    top: int,
) -> tuple[Cache, jax.Array, jax.Array, jax.Array]:
    """`read_chunk`, and the log-probability [m, t] of each target token after its token.

    With the `top` likeliest tokens in its place: ids and log-probabilities [m, t, top].
    """
    _traces["score_chunk"] += 1
    cache, hidden_mtd = _read(params, adapters, cache, part, config, compute, span)
    scores_mtv = logits(config, params, hidden_mtd)
    chosen_mt = jnp.take_along_axis(scores_mtv, targets_mt[..., None], -1)[..., 0]
    total_mt = jax.nn.logsumexp(scores_mtv, axis=-1)
    best_mtk, ids_mtk = jax.lax.top_k(scores_mtv, min(top, scores_mtv.shape[-1]))
    return cache, chosen_mt - total_mt, ids_mtk, best_mtk - total_mt[..., None]


@functools.partial(jax.jit, static_argnames=("config", "compute"), donate_argnames="cache")
def weigh(
    params: dict,
    adapters: AdapterStack | None,
    cache: Cache,
    rows: Rows,
    ids_bm: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
) -> tuple[Cache, jax.Array]:
    """Reads the token of every live row: the log-probability [b, m] of each id after it."""
    _traces["weigh"] += 1
    cache, scores_bv = _next_scores(params, adapters, cache, rows, config, compute)
    total_b1 = jax.nn.logsumexp(scores_bv, axis=-1, keepdims=True)
    return cache, jnp.take_along_axis(scores_bv, ids_bm, -1) - total_b1


@functools.partial(jax.jit, donate_argnames="cache")
def place(cache: Cache, prompts: Cache, copies: Copies) -> Cache:
    """Copies rows of `prompts` over rows of the cache."""
    _traces["place"] += 1
    return _copied(cache, prompts, copies)


@functools.partial(jax.jit, donate_argnames="prompts")
def repeat(prompts: Cache, row: int, source: int) -> Cache:
    """Row `row` becomes a copy of row `source`."""
    _traces["repeat"] += 1
    return jax.tree.map(lambda leaf: _move(leaf, leaf, row, source), prompts)


def _copied(cache: Cache, other: Cache | None, copies: Copies) -> Cache:
    """The cache after copies from `other`, or (None) from itself, in place."""

    def copy(index, cache):
        row, source = copies.rows_m[index], copies.sources_m[index]
        return jax.tree.map(
            lambda leaf, taken: _move(leaf, taken, row, source),
            cache, cache if other is None else other,
        )  # fmt: skip

    return jax.lax.fori_loop(0, copies.count, copy, cache)


def _move(leaf, other, row, source):
    taken = jax.lax.dynamic_index_in_dim(other, source, 0)
    return jax.lax.dynamic_update_slice_in_dim(leaf, taken, row, 0)


def _next_scores(params, adapters, cache, rows, config, compute):
    """The cache with every live row's token in it, and the logits [b, v] after it."""
    layout = _layout(rows.position_b[:, None], rows.live_b[:, None])
    hidden_btd, cache = forward_cached(
        config, params, rows.token_b[:, None], layout, cache, _slots(layout, cache),
        compute=compute, adapter=_chosen(adapters, rows.adapter_b),
    )  # fmt: skip
    return cache, by_token_id(logits(config, params, hidden_btd[:, 0]))


def _read(params, adapters, cache, part, config, compute, span):
    """(cache, hidden [m, t, d]): only what `part` concerns is taken out, and put back."""
    places_t = jnp.arange(part.tokens_mt.shape[1])
    layout = _layout(part.start_m[:, None] + places_t, places_t < part.count_m[:, None])
    lanes = range(part.rows_m.shape[0])

    def out(leaf):
        rows = [jax.lax.dynamic_index_in_dim(leaf, part.rows_m[m], 0) for m in lanes]
        return jnp.concatenate(rows)

    few = _front(jax.tree.map(out, cache), span)
    hidden_mtd, few = forward_cached(
        config, params, part.tokens_mt, layout, few, _slots(layout, few),
        compute=compute, adapter=_chosen(adapters, part.adapter_m),
    )  # fmt: skip
    for m in lanes:
        cache = jax.tree.map(
            lambda leaf, new, m=m: jax.lax.dynamic_update_slice(
                leaf, new[m : m + 1], (part.rows_m[m], *(0,) * (leaf.ndim - 1))
            ),
            cache, few,
        )  # fmt: skip
    return cache, hidden_mtd


def _front(cache: Cache, span: int) -> Cache:
    """The first `span` slots of every row."""
    return Cache(
        tuple(leaf[..., :span] for leaf in cache.key_bkhs),
        tuple(leaf[:, :, :span] for leaf in cache.value_bksh),
        jax.tree.map(lambda leaf: leaf[:, :span], cache.layout),
    )


def _chosen(adapters: AdapterStack | None, choice_b: jax.Array) -> Adapter | None:
    return None if adapters is None else adapters.choose(choice_b)


def _blank(count: int, steps: int, top: int) -> Out:
    numbers_bn = jnp.zeros((count, steps), jnp.float32)
    tokens_bn = jnp.full((count, steps), -1, jnp.int32)
    if not top:
        return Out(tokens_bn, numbers_bn, None)
    more_bnk = jnp.zeros((count, steps, top))
    return Out(
        tokens_bn, numbers_bn,
        Around(more_bnk.astype(jnp.int32), more_bnk, numbers_bn, numbers_bn),
    )  # fmt: skip


def _layout(positions_bt: jax.Array, valid_bt: jax.Array) -> Layout:
    return Layout(positions_bt, valid_bt.astype(jnp.int32), jnp.zeros_like(positions_bt))


def _slots(layout: Layout, cache: Cache) -> jax.Array:
    """Slot = position; what is not valid goes past the end, where it is dropped."""
    end = cache.layout.segments_bt.shape[1]
    return jnp.where(layout.segments_bt > 0, layout.positions_bt, end)


def _advance(rows: Rows, token_b: jax.Array) -> Rows:
    step_b = rows.live_b.astype(jnp.int32)
    count_b = rows.count_b + step_b
    stopped_b = (token_b[:, None] == rows.stops_be).any(-1)
    return rows.replace(
        token_b=jnp.where(rows.live_b, token_b, rows.token_b),
        position_b=rows.position_b + step_b,
        count_b=count_b,
        live_b=rows.live_b & ~stopped_b & (count_b < rows.limit_b),
    )
