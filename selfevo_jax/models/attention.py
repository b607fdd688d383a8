"""Who sees whom, and the weighted sum that follows.

One rule covers plain batches, packed rows, prompts shared by several completions, and
key-value caches: every token stands at a `Layout` place (segment, branch, position), and

    query sees key  iff  same segment (not 0), key position <= query position,
                         key branch is 0 (the shared prompt) or the query's own,
                         and the key lies within the sliding window.

Packed rows are long, but a token sees no more than its own prompt and completion. So a row is
cut into blocks, and each block of queries is given only those blocks of keys that it sees
something of: work grows with the row's length and not with its square.

Axes: b row, t query, s key, n query heads, k key-value heads, g query heads per key-value head,
h head width, c block of a row, q query of a block (all g heads in a row), w key block of a list.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from selfevo_jax.models.config import KEPT

# Wide enough to mean "no window", small enough for int32 arithmetic.
NO_WINDOW = 2**30
BLOCK = 64  # queries, or keys, of a block


@flax.struct.dataclass
class Layout:
    """Where every token of a batch stands; all arrays are int32 of shape [b, t].

    `segments`: 0 is padding, equal numbers belong together. `branches`: 0 is a prompt that
    all branches of its segment see, 1, 2, ... are completions that do not see each other.
    `positions`: the place within prompt + own branch, from 0. `reach`: where given, a block of
    queries sees keys of at most so many blocks of its row (see the module).
    """

    positions_bt: jax.Array
    segments_bt: jax.Array
    branches_bt: jax.Array
    reach: int | None = flax.struct.field(pytree_node=False, default=None)

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


def visible(query: Layout, key: Layout, window: jax.Array | int = NO_WINDOW) -> jax.Array:
    """The boolean mask [b, t, s] of the rule above."""
    distance_bts = query.positions_bt[:, :, None] - key.positions_bt[:, None, :]
    same_bts = query.segments_bt[:, :, None] == key.segments_bt[:, None, :]
    branch_bts = (key.branches_bt == 0)[:, None, :] | (
        query.branches_bt[:, :, None] == key.branches_bt[:, None, :]
    )
    filled_b1s = (key.segments_bt != 0)[:, None, :]
    return (distance_bts >= 0) & (distance_bts < window) & same_bts & branch_bts & filled_b1s


@flax.struct.dataclass
class Blocks:
    """Who sees whom, block by block: queries of block c see keys of blocks `listed_bcw` only.

    `mask_bcqs`: which of the keys (all listed blocks in a row) each query of the block sees.
    """

    listed_bcw: jax.Array
    mask_bcqs: jax.Array


def row_mask(layout: Layout, window: int) -> jax.Array | Blocks:
    """Who sees whom within rows: [b, t, t], or `Blocks` where that is less work."""
    mask_bts = visible(layout, layout, window)
    length = mask_bts.shape[1]
    if layout.reach is None or layout.reach * BLOCK >= length:
        return mask_bts
    return _blocks(mask_bts, layout.reach)


def _blocks(mask_bts: jax.Array, reach: int) -> Blocks:
    """The first `reach` blocks of keys that each block of queries sees something of."""
    rest = -mask_bts.shape[1] % BLOCK
    mask_bts = jnp.pad(mask_bts, ((0, 0), (0, rest), (0, rest)))
    count = mask_bts.shape[1] // BLOCK
    mask_bccqk = mask_bts.reshape(-1, count, BLOCK, count, BLOCK).swapaxes(2, 3)
    seen_bcc = mask_bccqk.any((3, 4))
    listed_bcw = jnp.argsort(~seen_bcc, axis=-1, stable=True)[..., :reach]
    mask_bcwqk = jnp.take_along_axis(mask_bccqk, listed_bcw[..., None, None], axis=2)
    mask_bcqs = mask_bcwqk.swapaxes(2, 3).reshape(*seen_bcc.shape[:2], BLOCK, -1)
    return Blocks(listed_bcw, mask_bcqs)


def attend(
    query_btnh: jax.Array,
    key_bksh: jax.Array,
    value_bksh: jax.Array,
    mask: jax.Array | Blocks,
    *,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """Grouped-query attention; returns [b, t, n, h] in the query's dtype.

    `mask` as `row_mask` gives it. Scores and softmax are float32. A query that sees nothing
    (padding) gets a finite, meaningless average. `softcap` is Gemma-2's
    `cap * tanh(score / cap)`.
    """
    query_btnh = scaled(query_btnh, scale)
    if not isinstance(mask, Blocks):
        return _attend(softcap, query_btnh, key_bksh, value_bksh, None, mask)
    b, t, n, h = query_btnh.shape
    rows = b * mask.listed_bcw.shape[1]  # every block becomes a row of its own
    query_rqnh = _cut(query_btnh).reshape(rows, BLOCK, n, h)
    key_rkqh, value_rkqh = (
        _cut(x.swapaxes(1, 2)).reshape(rows, BLOCK, -1, h).swapaxes(1, 2)
        for x in (key_bksh, value_bksh)
    )
    mask_rqs = mask.mask_bcqs.reshape(rows, BLOCK, -1)
    mixed_rqnh = _attend(softcap, query_rqnh, key_rkqh, value_rkqh, mask.listed_bcw, mask_rqs)
    return mixed_rqnh.reshape(b, -1, n, h)[:, :t]


def _cut(x_bt: jax.Array) -> jax.Array:
    """A row's places, filled up to whole blocks."""
    return jnp.pad(x_bt, ((0, 0), (0, -x_bt.shape[1] % BLOCK), *((0, 0),) * (x_bt.ndim - 2)))


def _attend(softcap, query_btnh, key_bksh, value_bksh, listed_bcw, mask_bts):
    """Attention of scaled queries. Queries of a group lie in a row, so that all products are of
    plain matrices: to transpose scores costs more than to make them."""
    query_bkqh = by_key_head(query_btnh, key_bksh.shape[1])
    mixed_bkqh = _mix(softcap, query_bkqh, key_bksh, value_bksh, listed_bcw, mask_bts)
    return by_place(mixed_bkqh, query_btnh.shape)


def scaled(query_btnh: jax.Array, scale: float) -> jax.Array:
    """Queries ready for the product: they are fewer than the scores. Scaled in float32: most head
    widths have no scale that bfloat16 holds exactly."""
    return (scale * query_btnh.astype(jnp.float32)).astype(query_btnh.dtype)


def by_key_head(query_btnh: jax.Array, key_heads: int) -> jax.Array:
    """[b, k, q, h]: the queries of a key-value head, one of its g heads after another."""
    b, t, n, h = query_btnh.shape
    query_bkgth = query_btnh.reshape(b, t, key_heads, n // key_heads, h).transpose(0, 2, 3, 1, 4)
    return query_bkgth.reshape(b, key_heads, -1, h)


def by_place(mixed_bkqh: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The way back from `by_key_head`, to [b, t, n, h]."""
    b, t, n, h = shape
    mixed_bkgth = mixed_bkqh.reshape(b, mixed_bkqh.shape[1], -1, t, h)
    return mixed_bkgth.transpose(0, 3, 1, 2, 4).reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(softcap, query_bkqh, key_bksh, value_bksh, listed_bcw, mask_bts):
    """Softmax-weighted values; with `listed_bcw`, of the listed blocks, which are rows.

    The backward pass makes the weights again from one number a query (Dao et al., 2022,
    arXiv:2205.14135): they are what would take most room.
    """
    return _mix_forward(softcap, query_bkqh, key_bksh, value_bksh, listed_bcw, mask_bts)[0]


def _mix_forward(softcap, query_bkqh, key_bksh, value_bksh, listed_bcw, mask_bts):
    keys, values = _listed(key_bksh, listed_bcw), _listed(value_bksh, listed_bcw)
    scores_bkqs = _scores(softcap, query_bkqh, keys)
    scores_bkqs = jnp.where(of_groups(mask_bts, scores_bkqs), scores_bkqs, -1e30)
    top_bkq1 = jnp.max(scores_bkqs, axis=-1, keepdims=True)
    weights_bkqs = jnp.exp(scores_bkqs - top_bkq1)
    total_bkq1 = jnp.sum(weights_bkqs, axis=-1, keepdims=True)
    mixed_bkqh = _product("bkqs,bksh->bkqh", weights_bkqs.astype(values.dtype), values)
    mixed_bkqh = checkpoint_name((mixed_bkqh / total_bkq1).astype(values.dtype), KEPT)
    norm_bkq1 = checkpoint_name(top_bkq1 + jnp.log(total_bkq1), KEPT)
    kept = (query_bkqh, key_bksh, value_bksh, listed_bcw, mask_bts, mixed_bkqh, norm_bkq1)
    return mixed_bkqh, kept


def _mix_backward(softcap, kept, slope_bkqh):
    query_bkqh, key_bksh, value_bksh, listed_bcw, mask_bts, mixed_bkqh, norm_bkq1 = kept
    keys, values = _listed(key_bksh, listed_bcw), _listed(value_bksh, listed_bcw)
    scores_bkqs = _scores(softcap, query_bkqh, keys)
    mask_bkqs = of_groups(mask_bts, scores_bkqs)
    weights_bkqs = jnp.where(mask_bkqs, jnp.exp(scores_bkqs - norm_bkq1), 0)
    pull_bkqs = _product("bkqh,bksh->bkqs", slope_bkqh, values)
    common_bkq1 = jnp.sum(slope_bkqh.astype(jnp.float32) * mixed_bkqh, axis=-1, keepdims=True)
    slopes_bkqs = weights_bkqs * (pull_bkqs - common_bkq1)
    if softcap is not None:
        slopes_bkqs *= 1 - (scores_bkqs / softcap) ** 2
    slopes_bkqs = slopes_bkqs.astype(query_bkqh.dtype)
    key_slope = jnp.einsum("bkqs,bkqh->bksh", slopes_bkqs, query_bkqh)
    value_slope = jnp.einsum("bkqs,bkqh->bksh", weights_bkqs.astype(slope_bkqh.dtype), slope_bkqh)
    return (
        jnp.einsum("bkqs,bksh->bkqh", slopes_bkqs, keys),
        _unlisted(key_slope, listed_bcw),
        _unlisted(value_slope, listed_bcw),
        None,
        None,
    )


_mix.defvjp(_mix_forward, _mix_backward)


def _listed(x_rkqh, listed_bcw):
    """For every block the listed blocks one after another, [r, k, s, h]; without a list, x."""
    if listed_bcw is None:
        return x_rkqh
    b, c, _ = listed_bcw.shape
    first_b11 = c * jnp.arange(b)[:, None, None]
    taken_rwkqh = x_rkqh[(listed_bcw + first_b11).reshape(b * c, -1)]
    return taken_rwkqh.swapaxes(1, 2).reshape(b * c, x_rkqh.shape[1], -1, x_rkqh.shape[3])


def _unlisted(slope_rksh, listed_bcw):
    """The transpose of `_listed`: slopes added up by block. A product with zeros and ones,
    because adding in place runs on one core of a CPU."""
    if listed_bcw is None:
        return slope_rksh
    b, c, w = listed_bcw.shape
    r, k, _, h = slope_rksh.shape
    slope_bxy = slope_rksh.reshape(r, k, w, -1).swapaxes(1, 2).reshape(b, c * w, -1)
    chosen_bxc = jax.nn.one_hot(listed_bcw.reshape(b, c * w), c, dtype=slope_rksh.dtype)
    return jnp.einsum("bxc,bxy->bcy", chosen_bxc, slope_bxy).reshape(r, k, -1, h)


def of_groups(mask_bts: jax.Array, scores_bkqs: jax.Array) -> jax.Array:
    """The mask for the queries of all heads of a group."""
    groups = scores_bkqs.shape[2] // mask_bts.shape[1]
    return jnp.tile(mask_bts, (1, groups, 1))[:, None]


def _scores(softcap, query_bkqh, key_bksh):
    """Capped products, float32 [b, k, q, s]."""
    scores_bkqs = _product("bkqh,bksh->bkqs", query_bkqh, key_bksh)
    return scores_bkqs if softcap is None else softcap * jnp.tanh(scores_bkqs / softcap)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
