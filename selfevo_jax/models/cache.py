"""Keys and values of tokens already read, and attention against them.

The cache keeps keys transposed, [h, s]: a few queries are multiplied with many keys, and a CPU
does that product two to three times as fast as with keys in rows. Nothing here is differentiated.

Axes as in `models.attention`; s is a slot of the cache.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from selfevo_jax.models.attention import Layout, by_key_head, by_place, of_groups, scaled
from selfevo_jax.models.config import ModelConfig

WIDTHS = 8  # a TPU keeps other widths in another order of the axes, to save the room


@flax.struct.dataclass
class Cache:
    """Keys [b, k, h, s] and values [b, k, s, h] of every layer.

    Heads have the model's width, filled up with zeros to a multiple of `WIDTHS` (`widened`).
    `layout` says which token stands in each of the s slots; segment 0 marks an empty one.
    Every leaf has the row axis first, so rows are copied by indexing the whole tree.
    """

    key_bkhs: tuple[jax.Array, ...]
    value_bksh: tuple[jax.Array, ...]
    layout: Layout


def init_cache(config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype = jnp.float32) -> Cache:
    """An empty cache of `slots` tokens for each of `rows` rows."""
    heads, width = config.num_kv_heads, -(-config.head_dim // WIDTHS) * WIDTHS

    def empty(*shape: int) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((rows, heads, *shape), dtype) for _ in range(config.num_layers))

    places = Layout(*(jnp.zeros((rows, slots), jnp.int32) for _ in range(3)))
    return Cache(empty(width, slots), empty(slots, width), places)


def widened(x_btnh: jax.Array, width: int) -> jax.Array:
    """Queries, keys or values as wide as a cache has them."""
    return jnp.pad(x_btnh, ((0, 0), (0, 0), (0, 0), (0, width - x_btnh.shape[-1])))


def stored(
    key_bkhs: jax.Array,
    value_bksh: jax.Array,
    slots_bt: jax.Array,
    key_btkh: jax.Array,
    value_btkh: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One layer's keys and values with token (b, t) at slot `slots_bt[b, t]`; outside: dropped."""
    if slots_bt.size == 1:
        # XLA makes the write of a single token a slice update, merges it into what reads the
        # cache and then copies the whole cache; two writes stay in place, and one is dropped.
        slots_bt = jnp.pad(slots_bt, [(0, 0), (0, 1)], constant_values=value_bksh.shape[2])
        key_btkh, value_btkh = (
            jnp.pad(new, [(0, 0), (0, 1), (0, 0), (0, 0)]) for new in (key_btkh, value_btkh)
        )
    rows_b1 = jnp.arange(slots_bt.shape[0])[:, None]
    keys = key_bkhs.at[rows_b1, :, :, slots_bt].set(key_btkh.astype(key_bkhs.dtype), mode="drop")
    values = value_bksh.at[rows_b1, :, slots_bt].set(
        value_btkh.astype(value_bksh.dtype), mode="drop"
    )
    return keys, values


def attend_cached(
    query_btnh: jax.Array,
    key_bkhs: jax.Array,
    value_bksh: jax.Array,
    mask_bts: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """`models.attention.attend` over the slots of a cache."""
    query_bkqh = by_key_head(scaled(query_btnh, scale), key_bkhs.shape[1])
    scores_bkqs = jnp.einsum(
        "bkqh,bkhs->bkqs", query_bkqh, key_bkhs, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores_bkqs = softcap * jnp.tanh(scores_bkqs / softcap)
    # Added, not chosen by a `where`: XLA's CPU compiler then makes scores and weights in one
    # pass over the keys, which takes two thirds of the time. -1e30 swallows any score.
    scores_bkqs += of_groups(jnp.where(mask_bts, 0.0, -1e30), scores_bkqs)
    weights_bkqs = jax.nn.softmax(scores_bkqs, axis=-1).astype(value_bksh.dtype)
    mixed_bkqh = jnp.einsum("bkqs,bksh->bkqh", weights_bkqs, value_bksh)
    return by_place(mixed_bkqh.astype(query_btnh.dtype), query_btnh.shape)
