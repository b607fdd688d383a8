"""Attention where the chips of a mesh hold different rows, heads and places of a row.

With a `sequence` axis every chip keeps the queries of its part of a row and gathers the keys and
values of all parts (Dubey et al., 2024, arXiv:2407.21783, section 3.3.2): of grouped heads they are
few, and any mask will do. The backward pass sends each part its share of their gradients. What
grows with the row (activations, scores, the mask) stays split.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

from selfevo_jax.models import attention
from selfevo_jax.parallel.mesh import BATCH_AXES, sequence_parts


def platform() -> str:
    """The platform of the mesh in use (which may be a slice that is not here), or JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """What the chips of that mesh, or this machine's, are called by their maker."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.local_devices()[0].device_kind if device is None else device.device_kind


def serves(length: int) -> bool:
    """Whether the mesh in use spreads rows of this length (not the one token of `init_params`)."""
    parts = sequence_parts()
    return parts > 1 and length % parts == 0


def attend(
    query_btnh: jax.Array,
    key_bksh: jax.Array,
    value_bksh: jax.Array,
    mask_bts: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """`models.attention.attend` on every chip."""
    rows = functools.partial(attention.attend, scale=scale, softcap=softcap)
    return on_each_chip(rows, query_btnh, key_bksh, value_bksh, mask_bts)


def on_each_chip(
    rows: Callable[..., jax.Array],
    query_btnh: jax.Array,
    key_bksh: jax.Array,
    value_bksh: jax.Array,
    mask_bts: jax.Array,
) -> jax.Array:
    """`rows(query, key, value, mask)` where each chip has its rows, heads and queries, and the
    keys and values of whole rows; [b, t, n, h]. Without a mesh, simply that."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return rows(query_btnh, key_bksh, value_bksh, mask_bts)
    heads = "tensor" if key_bksh.shape[1] % mesh.shape["tensor"] == 0 else None
    query, key = P(BATCH_AXES, "sequence", heads), P(BATCH_AXES, heads, "sequence")
    split = jax.shard_map(
        functools.partial(_with_whole_keys, rows, mesh.shape["sequence"]),
        in_specs=(query, key, key, P(BATCH_AXES, "sequence")), out_specs=query, check_vma=False,
    )  # fmt: skip
    return split(query_btnh, key_bksh, value_bksh, mask_bts)


def _with_whole_keys(rows, parts, query_btnh, key_bksh, value_bksh, mask_bts):
    if parts > 1:
        key_bksh, value_bksh = (
            jax.lax.all_gather(x, "sequence", axis=2, tiled=True) for x in (key_bksh, value_bksh)
        )
    return rows(query_btnh, key_bksh, value_bksh, mask_bts)
