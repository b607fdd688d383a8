"""Who sees whom, and the weighted sum that follows.

One rule covers plain batches, packed rows, prompts shared by several completions, and
key-value caches: every token stands at a `Layout` place (segment, branch, position), and

    query sees key  iff  same segment (not 0), key position <= query position,
                         key branch is 0 (the shared prompt) or the query's own,
                         and the key lies within the sliding window.

Axes: b row, t query, s key, k key-value heads, g query heads per key-value head, h head width.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

# Wide enough to mean "no window", small enough for int32 arithmetic.
NO_WINDOW = 2**30


@flax.struct.dataclass
class Layout:
    """Where every token of a batch stands; all arrays are int32 of shape [b, t].

    `segments`: 0 is padding, equal numbers belong together. `branches`: 0 is a prompt that
    all branches of its segment see, 1, 2, ... are completions that do not see each other.
    `positions`: the place within prompt + own branch, from 0.
    """

    positions_bt: jax.Array
    segments_bt: jax.Array
    branches_bt: jax.Array

    @classmethod
    def plain(cls, valid_bt: jax.Array) -> Layout:
        """One sequence a row; `valid_bt` (bool) marks its tokens, padding on either side."""
        segments_bt = valid_bt.astype(jnp.int32)
        positions_bt = jnp.maximum(jnp.cumsum(segments_bt, axis=1) - 1, 0)
        return cls(positions_bt, segments_bt, jnp.zeros_like(segments_bt))

    def write(self, other: Layout, slots_bt: jax.Array) -> Layout:
        """This layout with token (b, t) of `other` at column `slots_bt[b, t]`; outside: dropped."""
        rows_b1 = jnp.arange(slots_bt.shape[0])[:, None]
        return jax.tree.map(
            lambda mine, new: mine.at[rows_b1, slots_bt].set(new, mode="drop"), self, other
        )


@flax.struct.dataclass
class Cache:
    """Keys and values of tokens already read: per layer, arrays [b, k, s, h].

    `layout` says which token stands in each of the s slots; segment 0 marks an empty one.
    Every leaf has the row axis first, so rows are copied by indexing the whole tree.
    """

    key_bksh: tuple[jax.Array, ...]
    value_bksh: tuple[jax.Array, ...]
    layout: Layout


def visible(query: Layout, key: Layout, window: jax.Array | int = NO_WINDOW) -> jax.Array:
    """The boolean mask [b, t, s] of the rule above."""
    distance_bts = query.positions_bt[:, :, None] - key.positions_bt[:, None, :]
    same_bts = query.segments_bt[:, :, None] == key.segments_bt[:, None, :]
    branch_bts = (key.branches_bt == 0)[:, None, :] | (
        query.branches_bt[:, :, None] == key.branches_bt[:, None, :]
    )
    filled_b1s = (key.segments_bt != 0)[:, None, :]
    return (distance_bts >= 0) & (distance_bts < window) & same_bts & branch_bts & filled_b1s


def attend(
    query_btnh: jax.Array,
    key_bksh: jax.Array,
    value_bksh: jax.Array,
    mask_bts: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """Grouped-query attention; returns [b, t, n, h] in the query's dtype.

    Scores and softmax are float32. A query that sees nothing (padding) gets a finite,
    meaningless average. `softcap` is Gemma-2's `cap * tanh(score / cap)`.
    """
    b, t, n, h = query_btnh.shape
    k = key_bksh.shape[1]
    query_btkgh = query_btnh.reshape(b, t, k, n // k, h)
    scores_bkgts = scale * jnp.einsum(
        "btkgh,bksh->bkgts", query_btkgh, key_bksh, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores_bkgts = softcap * jnp.tanh(scores_bkgts / softcap)
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, -1e30)
    weights_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(value_bksh.dtype)
    mixed_btkgh = jnp.einsum("bkgts,bksh->btkgh", weights_bkgts, value_bksh)
    return mixed_btkgh.reshape(b, t, n, h)
