"""Attention of one new token a row on TPUs: reads the used part of a cache, writes in place.

A kernel goes over a row's slots block by block with a running softmax (Dao et al., 2022,
arXiv:2205.14135). It is told beforehand which blocks hold anything that the token sees: no other
is fetched, however long the cache and its neighbours are. What goes back are the 128 slots around
the token's own; all others stay where they are. (The compiler alone passes over the whole cache
three times, because a TPU scatters in another order of the axes than it multiplies in.)

Axes as in `models.cache`; q are the query heads of a key-value head, c the slots of a block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from selfevo_jax.models.attention import by_key_head, by_place, scaled
from selfevo_jax.models.context import platform
from selfevo_jax.parallel.mesh import BATCH_AXES

LANES = 128  # numbers in a row of the chip's registers; so many slots go back
_SIZES = (LANES, 2 * LANES, 4 * LANES)  # slots of a block
_BLOCK_BYTES = 2**20  # of the keys of a block; fast memory holds four such blocks
_QUERIES = 16  # a product takes so many, or a multiple: those that lack are zeros
_UNSEEN = -1e30


def serves(tokens: int) -> bool:
    """Whether attention to a cache of so many new tokens a row should run here."""
    return tokens == 1 and platform() == "tpu"


def attend(
    query_btnh: jax.Array,
    kept: tuple[jax.Array, jax.Array],
    slots_bt: jax.Array,
    key_btkh: jax.Array,
    value_btkh: jax.Array,
    mask_bts: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`cache.stored` and then `cache.attend_cached` for t = 1: (mixed [b, t, n, h], what is kept).

    `kept` are a layer's keys [b, k, h, s] and values [b, k, s, h]; `interpret` runs the kernel off
    a TPU, slowly, for tests.
    """
    rows = functools.partial(_on_a_chip, scale=scale, softcap=softcap, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        heads = "tensor" if kept[0].shape[1] % mesh.shape["tensor"] == 0 else None
        row, token, slots = P(BATCH_AXES), P(BATCH_AXES, None, heads), P(BATCH_AXES, heads)
        rows = jax.shard_map(
            rows, in_specs=(token, slots, slots, row, token, token, row),
            out_specs=(token, slots, slots), check_vma=False,
        )  # fmt: skip
    mixed_btnh, *kept = rows(query_btnh, *kept, slots_bt, key_btkh, value_btkh, mask_bts)
    return mixed_btnh, tuple(kept)


def _on_a_chip(
    query_btnh, key_bkhs, value_bksh, slots_bt, key_btkh, value_btkh, mask_bts,
    *, scale, softcap, interpret,
):  # fmt: skip
    """The rows and heads of one chip."""
    # In memory the axis that fills the registers' rows comes last. Of values that are narrower
    # than a row it is that of the slots, and to turn them is nothing; otherwise it would copy them.
    turned = key_bkhs.shape[2] % LANES != 0
    query_bkqh = by_key_head(scaled(query_btnh, scale), key_bkhs.shape[1])
    heads = query_bkqh.shape[2]
    query_bkqh = jnp.pad(query_bkqh, ((0, 0), (0, 0), (0, -heads % _QUERIES), (0, 0)))
    size = _block_size(key_bkhs)
    # Unseen to the end of the last block: what lies behind the cache is anything at all.
    bias_bts = jnp.where(mask_bts, 0.0, _UNSEEN)
    end = -mask_bts.shape[2] % size
    bias_bts = jnp.pad(bias_bts, ((0, 0), (0, 0), (0, end)), constant_values=_UNSEEN)
    key_khb = key_btkh[:, 0].transpose(1, 2, 0)
    value = value_btkh[:, 0].transpose(1, 2, 0) if turned else value_btkh.swapaxes(1, 2)
    mixed_bkqh, key_bkhs, values = _call(
        size, softcap, interpret, _cost(query_btnh, key_bkhs, value_bksh),
        _course(mask_bts[:, 0], slots_bt[:, 0], size),
        query_bkqh, key_khb.astype(key_bkhs.dtype), value.astype(value_bksh.dtype), bias_bts,
        key_bkhs, value_bksh.swapaxes(2, 3) if turned else value_bksh,
    )  # fmt: skip
    mixed_btnh = by_place(mixed_bkqh[:, :, :heads], query_btnh.shape)
    return mixed_btnh, key_bkhs, values.swapaxes(2, 3) if turned else values


def _block_size(key_bkhs: jax.Array) -> int:
    """Slots of a block: as many as fast memory has room for, and the cache."""
    _, k, h, s = key_bkhs.shape
    slot_bytes = k * h * key_bkhs.dtype.itemsize
    fit = (size for size in _SIZES if size * slot_bytes <= _BLOCK_BYTES and size < s + LANES)
    return max(fit, default=LANES)


def _course(mask_bs: jax.Array, slot_b: jax.Array, size: int) -> jax.Array:
    """[4, b]: the first and the last block that a row sees something of, the part of `LANES` slots
    that is written (any that is read, where nothing is new), and the new token's slot."""
    s = mask_bs.shape[1]
    seen_bs = mask_bs.astype(jnp.int32)
    first_b = jnp.argmax(seen_bs, axis=1)
    last_b = jnp.where(mask_bs.any(1), s - 1 - jnp.argmax(seen_bs[:, ::-1], axis=1), 0)
    home_b = jnp.where(slot_b < s, slot_b, first_b) // LANES
    return jnp.stack([first_b // size, last_b // size, home_b, slot_b]).astype(jnp.int32)


def _call(
    size, softcap, interpret, cost, course, query_bkqh, new_key, new_value, bias, keys, values
):  # fmt: skip
    """The new tokens are [k, h, b]; values may be [b, k, 1, h], the slots' axis in the cache is the
    last but one then."""
    (b, k, q, h), s = query_bkqh.shape, keys.shape[3]
    along = 3 if new_value.ndim == 3 else 2
    lanes = min(b, LANES)

    def block(row, step, course):
        return jnp.minimum(course[0, row] + step, course[1, row])

    def home(row, step, course):
        return course[2, row]

    def cut(axis, size, where):
        """`size` slots of a row, along this axis."""
        if axis == 3:
            return pl.BlockSpec((1, k, h, size), lambda row, *at: (row, 0, 0, where(row, *at)))
        return pl.BlockSpec((1, k, size, h), lambda row, *at: (row, 0, where(row, *at), 0))

    own = pl.BlockSpec((1, k, q, h), lambda row, *_: (row, 0, 0, 0))
    token = pl.BlockSpec((k, h, lanes), lambda row, *_: (0, 0, row // lanes))
    narrow = pl.BlockSpec((1, k, 1, h), lambda row, *_: (row, 0, 0, 0))
    seen = pl.BlockSpec((1, 1, size), lambda row, *at: (row, 0, block(row, *at)))
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(b, pl.cdiv(s, size)),
        in_specs=[
            own, token, token if along == 3 else narrow, seen,
            cut(3, size, block), cut(along, size, block),
        ],
        out_specs=[own, cut(3, LANES, home), cut(along, LANES, home)],
        scratch_shapes=[pltpu.VMEM((k, q, width), jnp.float32) for width in (1, 1, h)],
    )  # fmt: skip
    run = pl.pallas_call(
        functools.partial(_kernel, s, along - 1, softcap),
        grid_spec=grid,
        # Said of the cache, or the compiler brings all of it into faster memory, and back.
        out_shape=[jax.typeof(query_bkqh), pltpu.HBM.like(keys), pltpu.HBM.like(values)],
        input_output_aliases={5: 1, 6: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost,
        interpret=interpret,
        name="decode_attention",
    )
    return run(course, query_bkqh, new_key, new_value, bias, keys, values)


def _cost(query_btnh, key_bkhs, value_bksh) -> pl.CostEstimate:
    """Of rows whose cache is full; the compiler plans with it."""
    h, s = key_bkhs.shape[2:]
    scores = query_btnh.size // h * s
    kept = key_bkhs.nbytes + value_bksh.nbytes
    moved = 2 * query_btnh.nbytes + kept + kept // s * LANES
    return pl.CostEstimate(flops=4 * scores * h, transcendentals=scores, bytes_accessed=moved)


def _kernel(
    slots, along, softcap, course, query, new_key, new_value, bias, key, value,
    mixed, written_key, written_value, highest, total, sums,
):  # fmt: skip
    """One block of one row. `highest` score, `total` and `sums` are those of its blocks so far."""
    row, step, size = pl.program_id(0), pl.program_id(1), key.shape[3]
    block, home, slot = course[0, row] + step, course[2, row], course[3, row]
    token_kh1 = _column(new_key, row)
    token = _column(new_value, row) if along == 2 else new_value[0]

    @pl.when(step == 0)
    def _():
        highest[...] = jnp.full_like(highest, _UNSEEN)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(block == home * LANES // size)
    def _():
        part = pl.ds(pl.multiple_of(home * LANES % size, LANES), LANES)
        place = slot - home * LANES
        written_key[0] = _put(key[0, :, :, part], token_kh1, place, 2)
        old = value[0, :, :, part] if along == 2 else value[0, :, part]
        written_value[0] = _put(old, token, place, along)

    @pl.when(block <= course[1, row])
    def _():
        keys_khc = _put(key[0], token_kh1, slot - block * size, 2)
        values = _put(value[0], token, slot - block * size, along)
        if slots % size:
            values = jnp.where(_places(values.shape, along) < slots - block * size, values, 0)
        scores_kqc = _product(query[0], keys_khc, 1)
        if softcap is not None:
            scores_kqc = softcap * jnp.tanh(scores_kqc / softcap)
        scores_kqc = jnp.where(bias[...] > _UNSEEN, scores_kqc, _UNSEEN)
        before_kq1 = highest[...]
        highest[...] = jnp.maximum(before_kq1, scores_kqc.max(-1, keepdims=True))
        weights_kqc = jnp.exp(scores_kqc - highest[...])
        carried_kq1 = jnp.exp(before_kq1 - highest[...])
        total[...] = carried_kq1 * total[...] + weights_kqc.sum(-1, keepdims=True)
        added_kqh = _product(weights_kqc.astype(values.dtype), values, along)
        sums[...] = carried_kq1 * sums[...] + added_kqh

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        mixed[0] = (sums[...] / total[...]).astype(mixed.dtype)


def _column(rows_khb, row):
    """[k, h, 1]: this row's numbers, which lie beside those of others."""
    here = _places((1, 1, rows_khb.shape[2]), 2) == row % rows_khb.shape[2]
    return jnp.where(here, rows_khb[...], 0).sum(-1, keepdims=True)


def _put(block, token, place, axis):
    """A block with the token's numbers at `place` of an axis, if that is in it."""
    return jnp.where(_places(block.shape, axis) == place, token, block)


def _places(shape, axis):
    flat = [size if index == axis else 1 for index, size in enumerate(shape)]
    return jax.lax.broadcasted_iota(jnp.int32, flat, axis)


def _product(left, right, axis):
    """[k, q, .]: the last axis of `left` with this one of `right`, head by head."""
    return jax.lax.dot_general(
        left, right, (((2,), (axis,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )
