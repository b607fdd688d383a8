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

from selfevo_jax.models.attention import Cache, Layout
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import forward_cached, logits
from selfevo_jax.models.lora import Adapter
from selfevo_jax.sample.select import Rules, next_tokens, row_keys

_traces: Counter[str] = Counter()


@flax.struct.dataclass
class Rows:
    """The state of the decoding rows, arrays [b] (numpy on the host).

    `token` is the last known token, not yet in the cache, and `position` its place; `count`
    of at most `limit` tokens were sampled; `stops` [b, e] are token ids that end the row
    (-1: none); `seeds` [b, 2] the two uint32 words of the seed.
    """

    token_b: jax.Array
    position_b: jax.Array
    count_b: jax.Array
    limit_b: jax.Array
    live_b: jax.Array
    stops_be: jax.Array
    seeds_b2: jax.Array
    rules: Rules


def compile_count() -> int:
    """How many programs this module has traced since the process started."""
    return sum(_traces.values())


@functools.partial(jax.jit, static_argnames=("config", "compute", "steps"), donate_argnames="cache")
def decode(
    params: dict,
    adapter: Adapter | None,
    cache: Cache,
    rows: Rows,
    *,
    config: ModelConfig,
    compute: Compute,
    steps: int,
) -> tuple[Cache, jax.Array, jax.Array, jax.Array]:
    """Up to `steps` tokens for every live row: (cache, tokens [b, n], logps [b, n], live [b]).

    A row that ends inside the call is frozen; places it does not reach hold token -1.
    """
    _traces["decode"] += 1
    count = rows.token_b.shape[0]

    def go_on(carry):
        step, _, rows, *_ = carry
        return (step < steps) & rows.live_b.any()

    def one(carry):
        step, cache, rows, tokens_bn, logps_bn = carry
        layout = _layout(rows.position_b[:, None], rows.live_b[:, None])
        hidden_btd, cache = forward_cached(
            config, params, rows.token_b[:, None], layout, cache,
            _slots(layout, cache), compute=compute, adapter=adapter,
        )  # fmt: skip
        scores_bv = logits(config, params, hidden_btd[:, 0])
        token_b, logp_b = next_tokens(scores_bv, rows.rules, row_keys(rows.seeds_b2, rows.count_b))
        tokens_bn = tokens_bn.at[:, step].set(jnp.where(rows.live_b, token_b, -1))
        return step + 1, cache, _advance(rows, token_b), tokens_bn, logps_bn.at[:, step].set(logp_b)

    empty = jnp.full((count, steps), -1, jnp.int32), jnp.zeros((count, steps), jnp.float32)
    _, cache, rows, tokens_bn, logps_bn = jax.lax.while_loop(go_on, one, (0, cache, rows, *empty))
    return cache, tokens_bn, logps_bn, rows.live_b


@functools.partial(jax.jit, static_argnames=("config", "compute"), donate_argnames="cache")
def read_chunk(
    params: dict,
    adapter: Adapter | None,
    cache: Cache,
    tokens_bt: jax.Array,
    start_b: jax.Array,
    count_b: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
) -> Cache:
    """Puts the first `count` of these tokens, which stand at `start`, ..., into the cache."""
    _traces["read_chunk"] += 1
    _, cache = _chunk(params, adapter, cache, tokens_bt, start_b, count_b, config, compute)
    return cache


@functools.partial(jax.jit, static_argnames=("config", "compute", "top"), donate_argnames="cache")
def score_chunk(
    params: dict,
    adapter: Adapter | None,
    cache: Cache,
    tokens_bt: jax.Array,
    start_b: jax.Array,
    count_b: jax.Array,
    targets_bt: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    top: int,
) -> tuple[Cache, jax.Array, jax.Array, jax.Array]:
    """`read_chunk`, and the log-probability [b, t] of each target token after its token.

    With the `top` likeliest tokens in its place: ids and log-probabilities [b, t, top].
    """
    _traces["score_chunk"] += 1
    hidden_btd, cache = _chunk(params, adapter, cache, tokens_bt, start_b, count_b, config, compute)
    scores_btv = logits(config, params, hidden_btd)
    chosen_bt = jnp.take_along_axis(scores_btv, targets_bt[..., None], -1)[..., 0]
    total_bt = jax.nn.logsumexp(scores_btv, axis=-1)
    best_btk, ids_btk = jax.lax.top_k(scores_btv, min(top, scores_btv.shape[-1]))
    return cache, chosen_bt - total_bt, ids_btk, best_btk - total_bt[..., None]


@functools.partial(jax.jit, donate_argnames="cache")
def place(
    cache: Cache, prompts: Cache, rows_m: jax.Array, sources_m: jax.Array, count: int
) -> Cache:
    """Copies prompt `sources[i]` over row `rows[i]` of the cache, for the first `count` i."""
    _traces["place"] += 1

    def copy(index, cache):
        def put(leaf, prompt):
            row = jax.lax.dynamic_index_in_dim(prompt, sources_m[index], 0)
            return jax.lax.dynamic_update_slice_in_dim(leaf, row, rows_m[index], 0)

        return jax.tree.map(put, cache, prompts)

    return jax.lax.fori_loop(0, count, copy, cache)


@jax.jit
def rearrange(prompts: Cache, sources_b: jax.Array, keep_b: jax.Array) -> Cache:
    """Row b becomes the first `keep[b]` tokens of row `sources[b]`."""
    _traces["rearrange"] += 1
    moved = jax.tree.map(lambda leaf: leaf[sources_b], prompts)
    kept_bs = jnp.arange(moved.layout.segments_bt.shape[1]) < keep_b[:, None]
    segments_bt = jnp.where(kept_bs, moved.layout.segments_bt, 0)
    return moved.replace(layout=moved.layout.replace(segments_bt=segments_bt))


def _chunk(params, adapter, cache, tokens_bt, start_b, count_b, config, compute):
    places_t = jnp.arange(tokens_bt.shape[1])
    layout = _layout(start_b[:, None] + places_t, places_t < count_b[:, None])
    return forward_cached(
        config, params, tokens_bt, layout, cache,
        _slots(layout, cache), compute=compute, adapter=adapter,
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
