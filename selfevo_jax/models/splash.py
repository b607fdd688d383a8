"""Attention on TPUs without ever making [heads, t, s] scores: splash attention, row by row.

The kernel (`jax.experimental.pallas.ops.tpu.splash_attention`, after Dao, 2023) takes the mask
of `models.attention.visible` as it is, so packed segments, shared prompts with branches, and
sliding windows all hold exactly. Blocks of the mask in which nobody sees anybody are skipped:
a packed row costs about what its examples would cost apart. Its backward pass keeps the output
and one number a query.

A kernel is opaque to the compiler's partitioner, hence `models.context`: every chip has its rows,
its heads and its queries.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

from selfevo_jax.models.config import KEPT
from selfevo_jax.models.context import on_each_chip, platform

LANE = 128  # block sizes are multiples of it
_BLOCKS = (512, 256, 128)


def serves(queries: int, keys: int) -> bool:
    """Whether attention of these lengths should run here: on a TPU, over rows' own tokens."""
    return platform() == "tpu" and queries == keys >= LANE


def attend(
    query_btnh: jax.Array,
    key_bksh: jax.Array,
    value_bksh: jax.Array,
    mask_bts: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`models.attention.attend` for t = s; a query that sees nothing (padding) gets its own value.

    `interpret` runs the kernel off a TPU, slowly, for tests.
    """
    # The kernel divides by zero for a query without keys; every real token sees itself anyway.
    mask_bts = mask_bts | jnp.eye(mask_bts.shape[1], dtype=bool)
    rows = functools.partial(attend_part, scale=scale, softcap=softcap, interpret=interpret)
    return on_each_chip(rows, query_btnh, key_bksh, value_bksh, mask_bts)


def attend_part(
    query_btnh: jax.Array,
    key_bksh: jax.Array,
    value_bksh: jax.Array,
    mask_bts: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attend` on one chip, for some of the queries, each of which must see a key."""
    queries, keys = mask_bts.shape[1:]
    query_end, key_end = -queries % LANE, -keys % LANE
    sizes = _block_sizes(queries + query_end, keys + key_end)

    def row(inputs):
        query_nth, key_ksh, value_ksh, mask_ts = inputs
        kernel = kernels.make_splash_mha_single_device(
            mask_ts[None], block_sizes=sizes, attn_logits_soft_cap=softcap, interpret=interpret,
            residual_checkpoint_name=KEPT,
        )  # fmt: skip
        return _static(kernel)(query_nth, key_ksh, value_ksh)

    # Scaled in float32: most head widths have no scale that bfloat16 holds exactly.
    scaled_btnh = (query_btnh.astype(jnp.float32) * scale).astype(query_btnh.dtype)
    rows = [
        jnp.pad(x, ((0, 0), (0, 0), (0, end), (0, 0)))
        for x, end in (
            (scaled_btnh.swapaxes(1, 2), query_end), (key_bksh, key_end), (value_bksh, key_end)
        )
    ]  # fmt: skip
    mask_bts = jnp.pad(mask_bts, ((0, 0), (0, 0), (0, key_end)))
    mask_bts = jnp.pad(mask_bts, ((0, 0), (0, query_end), (0, 0)), mode="edge")
    # One row at a time: the mask steers the kernel's fetches, which differ from row to row.
    mixed_bnth = jax.lax.map(row, (*rows, mask_bts))
    return mixed_bnth[:, :, :queries].swapaxes(1, 2)


def _static(kernel: kernels.SplashAttentionKernel) -> kernels.SplashAttentionKernel:
    """The kernel with its flag for run-time masks as a plain bool.

    JAX makes every field of the mask's description an array, and then branches on this one,
    which cannot be done under `jit`.
    """
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    infos = (info._replace(is_dynamic_mask=True) for info in infos)
    return kernels.SplashAttentionKernel(*infos, **kernel.kwargs)


def _block_sizes(queries: int, keys: int) -> kernels.BlockSizes:
    q, kv = (next(size for size in _BLOCKS if length % size == 0) for length in (queries, keys))
    return kernels.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=kv,
        block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
        block_q_dq=q, block_kv_dq=kv,
    )  # fmt: skip
