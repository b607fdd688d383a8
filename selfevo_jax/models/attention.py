"""Who sees whom, and the weighted sum that follows.

One rule covers plain batches, packed rows, prompts shared by several completions, and
key-value caches: every token stands at a `Layout` place (segment, branch, position), and

    query sees key  iff  same segment (not 0), key position <= query position,
                         key branch is 0 (the shared prompt) or the query's own,
                         and the key lies within the sliding window.

Packed rows are long, but no token sees further back than its own example reaches. `band` cuts a
row into blocks of queries and gives each the keys of its own block and of the few before it, so
that work grows with the row's length and not with its square.

Axes: b row, t query, s key, k key-value heads, g query heads per key-value head, h head width,
c block of a row, q query of a block, w key of a block's band.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

# Wide enough to mean "no window", small enough for int32 arithmetic.
NO_WINDOW = 2**30
MIX = 128  # keys whose values are mixed together when queries are few
BLOCK = 64  # queries of a block


@flax.struct.dataclass
class Layout:
    """Where every token of a batch stands; all arrays are int32 of shape [b, t].

    `segments`: 0 is padding, equal numbers belong together. `branches`: 0 is a prompt that
    all branches of its segment see, 1, 2, ... are completions that do not see each other.
    `positions`: the place within prompt + own branch, from 0. `span`: where given, no segment
    takes more places of a row than this and all lie in one piece, so attention may be banded.
    """

    positions_bt: jax.Array
    segments_bt: jax.Array
    branches_bt: jax.Array
    span: int | None = flax.struct.field(pytree_node=False, default=None)

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


def masks(layout: Layout, window: int) -> jax.Array:
    """Who sees whom within rows: [b, t, t], or [b, c, q, w] where the band is the cheaper form."""
    length = layout.segments_bt.shape[1]
    if layout.span is None or _back(layout.span) * BLOCK + BLOCK >= length:
        return visible(layout, layout, window)
    back = _back(layout.span)
    return jax.vmap(lambda q, k: visible(q, k, window), 1, 1)(
        jax.tree.map(lambda x: band(x, 0), layout), jax.tree.map(lambda x: band(x, back), layout)
    )


def band(x_bt: jax.Array, back: int) -> jax.Array:
    """[b, t, ...] -> [b, c, w, ...]: each block with the `back` blocks before it, zeros outside."""
    count = -(-x_bt.shape[1] // BLOCK)
    ends = (back * BLOCK, count * BLOCK - x_bt.shape[1])
    x_bt = jnp.pad(x_bt, ((0, 0), ends, *((0, 0),) * (x_bt.ndim - 2)))
    blocks_bcq = x_bt.reshape(x_bt.shape[0], count + back, BLOCK, *x_bt.shape[2:])
    return jnp.concatenate([blocks_bcq[:, i : i + count] for i in range(back + 1)], axis=2)


def _back(span: int) -> int:
    """How many blocks before its own a token of an example of `span` places may look into."""
    return -(-(span - 1) // BLOCK)


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

    `mask_bts` may be the banded [b, c, q, w] of `masks`. Scores and softmax are float32. A query
    that sees nothing (padding) gets a finite, meaningless average. `softcap` is Gemma-2's
    `cap * tanh(score / cap)`.
    """
    if mask_bts.ndim == 4:
        return _attend_banded(query_btnh, key_bksh, value_bksh, mask_bts, scale, softcap)
    b, t, n, h = query_btnh.shape
    k = key_bksh.shape[1]
    query_btkgh = query_btnh.reshape(b, t, k, n // k, h)
    mixed_btkgh = _mix(scale, softcap, query_btkgh, key_bksh, value_bksh, mask_bts)
    return mixed_btkgh.reshape(b, t, n, h)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mix(scale, softcap, query_btkgh, key_bksh, value_bksh, mask_bts):
    """Softmax-weighted values. The backward pass makes the weights again from one number a query
    (Dao et al., 2022, arXiv:2205.14135): they are what would take most room."""
    return _mix_forward(scale, softcap, query_btkgh, key_bksh, value_bksh, mask_bts)[0]


def _mix_forward(scale, softcap, query_btkgh, key_bksh, value_bksh, mask_bts):
    scores_bkgts = _scores(scale, softcap, query_btkgh, key_bksh)
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, -1e30)
    top_bkgt1 = jnp.max(scores_bkgts, axis=-1, keepdims=True)
    weights_bkgts = jnp.exp(scores_bkgts - top_bkgt1)
    total_bkgt1 = jnp.sum(weights_bkgts, axis=-1, keepdims=True)
    mixed_bkgth = jnp.einsum(
        "bkgts,bksh->bkgth",
        weights_bkgts.astype(value_bksh.dtype),
        value_bksh,
        preferred_element_type=jnp.float32,
    )
    mixed_btkgh = jnp.moveaxis(mixed_bkgth / total_bkgt1, 3, 1).astype(value_bksh.dtype)
    norm_bkgt1 = top_bkgt1 + jnp.log(total_bkgt1)
    return mixed_btkgh, (query_btkgh, key_bksh, value_bksh, mask_bts, mixed_btkgh, norm_bkgt1)


def _mix_backward(scale, softcap, kept, slope_btkgh):
    query_btkgh, key_bksh, value_bksh, mask_bts, mixed_btkgh, norm_bkgt1 = kept
    dtype = query_btkgh.dtype
    scores_bkgts = _scores(scale, softcap, query_btkgh, key_bksh)
    weights_bkgts = jnp.where(mask_bts[:, None, None], jnp.exp(scores_bkgts - norm_bkgt1), 0)
    pull_bkgts = jnp.einsum(
        "btkgh,bksh->bkgts", slope_btkgh, value_bksh, preferred_element_type=jnp.float32
    )
    common_btkg = jnp.sum(slope_btkgh.astype(jnp.float32) * mixed_btkgh, axis=-1)
    slopes_bkgts = weights_bkgts * (pull_bkgts - jnp.moveaxis(common_btkg, 1, 3)[..., None])
    if softcap is not None:
        slopes_bkgts *= 1 - (scores_bkgts / softcap) ** 2
    slopes_bkgts = (scale * slopes_bkgts).astype(dtype)
    return (
        jnp.einsum("bkgts,bksh->btkgh", slopes_bkgts, key_bksh),
        jnp.einsum("bkgts,btkgh->bksh", slopes_bkgts, query_btkgh),
        jnp.einsum("bkgts,btkgh->bksh", weights_bkgts.astype(dtype), slope_btkgh),
        None,
    )


_mix.defvjp(_mix_forward, _mix_backward)


def _scores(scale, softcap, query_btkgh, key_bksh):
    """Scaled and capped products, float32 [b, k, g, t, s]."""
    scores_bkgts = scale * jnp.einsum(
        "btkgh,bksh->bkgts", query_btkgh, key_bksh, preferred_element_type=jnp.float32
    )
    return scores_bkgts if softcap is None else softcap * jnp.tanh(scores_bkgts / softcap)


def _attend_banded(query_btnh, key_bksh, value_bksh, mask_bcqw, scale, softcap):
    """`attend` with every block of queries as a row of its own."""
    b, t, n, h = query_btnh.shape
    rows = b * mask_bcqw.shape[1]
    back = mask_bcqw.shape[3] // BLOCK - 1
    query_rqnh = band(query_btnh, 0).reshape(rows, BLOCK, n, h)
    key_rkwh, value_rkwh = (
        band(x.swapaxes(1, 2), back).reshape(rows, -1, x.shape[1], h).swapaxes(1, 2)
        for x in (key_bksh, value_bksh)
    )
    mask_rqw = mask_bcqw.reshape(rows, *mask_bcqw.shape[2:])
    mixed_rqnh = attend(query_rqnh, key_rkwh, value_rkwh, mask_rqw, scale=scale, softcap=softcap)
    return mixed_rqnh.reshape(b, -1, n, h)[:, :t]
