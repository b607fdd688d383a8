"""Linear layers with their share of an adapter.

    y = x W (+ bias) + scaling * dropout(x) a b          (Hu et al., 2021, arXiv:2106.09685)

Where x is float32 and nothing is dropped, the kernel is put together first, y = x (W + scaling
a b), and only the gradients of a and b take the low-rank way: a third of the small products, and
no pass over y to add them. In fewer bits that sum would round the adapter away.

A single token on a CPU (a lone answer being sampled) is a product of a vector and a matrix, which
XLA gives to one core; as a batch of parts of the sum it goes to all, and reads the weights faster.
"""

from __future__ import annotations

import functools
import math
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from selfevo_jax.models.config import KEPT
from selfevo_jax.models.quantize import Stored, apply_quantized

KERNEL_INIT = nn.initializers.normal(0.02)


class Projection(nn.Module):
    """`x W (+ bias)`, plus the low-rank product where the adapter has one at this place."""

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x_bti: jax.Array, lora: LoraSlice) -> jax.Array:
        y_bto = checkpoint_name(self._product(x_bti, lora), KEPT)
        if self.use_bias:
            y_bto += self.param("bias", nn.initializers.zeros, (self.features,)).astype(y_bto.dtype)
        return y_bto

    def _product(self, x_bti: jax.Array, lora: LoraSlice) -> jax.Array:
        # `self.param` compares shapes, and a quantised kernel has others.
        if isinstance(self.get_variable("params", "kernel"), Stored):
            y_bto = apply_quantized(x_bti, self.get_variable("params", "kernel"))
            return y_bto + lora.delta(x_bti, self.path) if lora.has(self.path) else y_bto
        kernel_io = self.param("kernel", KERNEL_INIT, (x_bti.shape[-1], self.features))
        kernel_io = kernel_io.astype(x_bti.dtype)
        if not lora.has(self.path):
            return _product(x_bti, kernel_io)
        if x_bti.dtype == jnp.float32 and lora.is_plain:
            return _summed_first(lora.scaling, x_bti, kernel_io, *lora.pair(self.path))
        return _product(x_bti, kernel_io) + lora.delta(x_bti, self.path)


class LoraSlice:
    """One layer's share of an adapter, looked up by module path."""

    def __init__(self, adapter, params: dict, dropout_key: jax.Array | None):
        self._adapter, self._params, self._dropout_key = adapter, params, dropout_key

    @property
    def scaling(self) -> float:
        """The factor on the low-rank product."""
        return self._adapter.scaling

    @property
    def is_plain(self) -> bool:
        """Whether it is the same for all rows, and nothing is dropped."""
        dropped = self._adapter.dropout and self._dropout_key is not None
        return self._adapter.mask_br is None and not dropped

    def has(self, path: tuple[str, ...]) -> bool:
        """Whether the adapter changes the module whose path ends in these two names."""
        return path[-1] in self._params.get(path[-2], {})

    def pair(self, path: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
        """(a [i, r], b [r, o]) of the module at `path`."""
        pair = self._params[path[-2]][path[-1]]
        return pair["a"], pair["b"]

    def delta(self, x_bti: jax.Array, path: tuple[str, ...]) -> jax.Array:
        """`scaling * dropout(x) a b` for the module at `path`."""
        a_ir, b_ro = (leaf.astype(x_bti.dtype) for leaf in self.pair(path))
        if self._adapter.dropout and self._dropout_key is not None:
            x_bti = self._drop(x_bti, path)
        low_btr = x_bti @ a_ir
        if self._adapter.mask_br is not None:
            low_btr = jnp.where(self._adapter.mask_br[:, None], low_btr, 0)
        return self._adapter.scaling * (low_btr @ b_ro)

    def _drop(self, x_bti: jax.Array, path: tuple[str, ...]) -> jax.Array:
        # The key depends on the place alone, so a resumed step draws the same mask.
        place = sum(ord(char) * 31**i for i, char in enumerate("/".join(path[-2:]))) % 2**31
        keep = 1.0 - self._adapter.dropout
        mask_bti = jax.random.bernoulli(
            jax.random.fold_in(self._dropout_key, place), keep, x_bti.shape
        )
        return jnp.where(mask_bti, x_bti / keep, 0)


def _product(x_bti: jax.Array, kernel_io: jax.Array) -> jax.Array:
    """`x W`, summed in one part per core where x is one vector on a CPU."""
    parts = math.gcd(x_bti.shape[-1], os.cpu_count() or 1)
    if x_bti.size != x_bti.shape[-1] or jax.default_backend() != "cpu" or parts == 1:
        return x_bti @ kernel_io
    x_pi = x_bti.reshape(parts, -1)
    y_po = jnp.einsum("pi,pio->po", x_pi, kernel_io.reshape(*x_pi.shape, -1))
    return y_po.sum(0).reshape(*x_bti.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_first(scaling, x_bti, kernel_io, a_ir, b_ro):
    """`x (kernel + scaling a b)`."""
    return x_bti @ (kernel_io + scaling * (a_ir @ b_ro))


def _summed_first_forward(scaling, x_bti, kernel_io, a_ir, b_ro):
    return _summed_first(scaling, x_bti, kernel_io, a_ir, b_ro), (x_bti, kernel_io, a_ir, b_ro)


def _summed_first_backward(scaling, kept, slope_bto):
    x_bti, kernel_io, a_ir, b_ro = kept
    sum_io = kernel_io + scaling * (a_ir @ b_ro)
    low_btr, back_btr = scaling * (x_bti @ a_ir), scaling * (slope_bto @ b_ro.T)
    return (
        slope_bto @ sum_io.T,
        jnp.einsum("bti,bto->io", x_bti, slope_bto),  # not computed where the base is frozen
        jnp.einsum("bti,btr->ir", x_bti, back_btr),
        jnp.einsum("btr,bto->ro", low_btr, slope_bto),
    )


_summed_first.defvjp(_summed_first_forward, _summed_first_backward)
