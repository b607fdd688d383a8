"""Attention on NVIDIA cards without ever making [heads, t, s] scores: cuDNN's fused kernel.

JAX carries the kernel (`jax.nn.dot_product_attention`, after Dao, 2023). It takes the mask of
`models.attention.visible` as an additive bias, so packed segments, shared prompts with branches
and sliding windows all hold exactly; scores are summed in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.context import device_kind, on_each_chip, platform
from selfevo_jax.parallel.cards import capability

LEAST = 128  # a guess: where the kernel begins to pay was never measured
_DTYPES = (jnp.bfloat16, jnp.float16)
_AMPERE = (8, 0)  # the oldest cards that have the kernel


def serves(config: ModelConfig, length: int, dtype: Any) -> bool:
    """Whether the kernel has this model's heads, numbers of this kind and rows of this length."""
    fits = (
        dtype in _DTYPES
        and length >= LEAST
        and length % 2 == 0
        and config.head_dim % 8 == 0
        and config.head_dim <= 128
        and config.attn_softcap is None
    )
    return fits and platform() == "gpu" and _capability() >= _AMPERE


def attend(
    query_btnh: jax.Array,
    key_bksh: jax.Array,
    value_bksh: jax.Array,
    mask_bts: jax.Array,
    *,
    scale: float,
    softcap: None = None,
    implementation: str = "cudnn",
) -> jax.Array:
    """`models.attention.attend` for t = s, without a soft cap (`serves` sees to that).

    `implementation="xla"` computes the same thing anywhere, for tests.
    """
    rows = functools.partial(_rows, scale=scale, implementation=implementation)
    return on_each_chip(rows, query_btnh, key_bksh, value_bksh, mask_bts)


def _rows(query_btnh, key_bksh, value_bksh, mask_bts, *, scale, implementation):
    return jax.nn.dot_product_attention(
        query_btnh, key_bksh.swapaxes(1, 2), value_bksh.swapaxes(1, 2),
        mask=mask_bts[:, None], scale=scale, implementation=implementation,
    )  # fmt: skip


def _capability() -> tuple[int, ...]:
    """NVIDIA's number of the card's generation; (0,) of a card that is not theirs."""
    described = capability(device_kind())
    if described is not None:
        return described
    number = getattr(jax.local_devices()[0], "compute_capability", "")
    parts = str(number).split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else (0,)
