"""Attention on TPUs without ever making [heads, t, s] scores: splash attention, row by row.

The kernel (`jax.experimental.pallas.ops.tpu.splash_attention`, after Dao, 2023) takes the mask
of `models.attention.visible` as it is, so packed segments, shared prompts with branches, and
sliding windows all hold exactly. Blocks of the mask in which nobody sees anybody are skipped:
a packed row costs about what its examples would cost apart. Its backward pass keeps the output
and one number a query.

A kernel is opaque to the compiler's partitioner, hence `shard_map`: rows are split over the
batch axes and heads over `tensor`, and nothing is exchanged.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.sharding import PartitionSpec as P

from selfevo_jax.models.config import KEPT
from selfevo_jax.parallel.mesh import BATCH_AXES

LANE = 128  # block sizes are multiples of it
_BLOCKS = (512, 256, 128)


def serves(queries: int, keys: int) -> bool:
    """Whether attention of these lengths should run here: on a TPU, over rows' own tokens.

    The platform is that of the mesh in use, which may be a slice that is not here.
    """
    return _platform() == "tpu" and queries == keys >= LANE


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
    rows = functools.partial(_rows, scale=scale, softcap=softcap, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return rows(query_btnh, key_bksh, value_bksh, mask_bts)
    heads = "tensor" if key_bksh.shape[1] % mesh.shape["tensor"] == 0 else None
    query, key = P(BATCH_AXES, None, heads), P(BATCH_AXES, heads)
    split = jax.shard_map(
        rows, in_specs=(query, key, key, P(BATCH_AXES)), out_specs=query, check_vma=False
    )
    return split(query_btnh, key_bksh, value_bksh, mask_bts)


def _rows(query_btnh, key_bksh, value_bksh, mask_bts, *, scale, softcap, interpret):
    length = mask_bts.shape[1]
    end = -length % LANE
    sizes = _block_sizes(length + end)

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
        for x in (scaled_btnh.swapaxes(1, 2), key_bksh, value_bksh)
    ]
    # The kernel divides by zero for a query without keys; every real token sees itself anyway.
    mask_bts = jnp.pad(mask_bts, ((0, 0), (0, end), (0, end))) | jnp.eye(length + end, dtype=bool)
    # One row at a time: the mask steers the kernel's fetches, which differ from row to row.
    mixed_bnth = jax.lax.map(row, (*rows, mask_bts))
    return mixed_bnth[:, :, :length].swapaxes(1, 2)


def _static(kernel: kernels.SplashAttentionKernel) -> kernels.SplashAttentionKernel:
    """The kernel with its flag for run-time masks as a plain bool.

    JAX makes every field of the mask's description an array, and then branches on this one,
    which cannot be done under `jit`.
    """
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    infos = (info._replace(is_dynamic_mask=True) for info in infos)
    return kernels.SplashAttentionKernel(*infos, **kernel.kwargs)


def _block_sizes(length: int) -> kernels.BlockSizes:
    size = next(size for size in _BLOCKS if length % size == 0)
    return kernels.BlockSizes(
        block_q=size, block_kv=size, block_kv_compute=size,
        block_q_dkv=size, block_kv_dkv=size, block_kv_dkv_compute=size,
        block_q_dq=size, block_kv_dq=size,
    )  # fmt: skip


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
