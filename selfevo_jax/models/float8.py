"""A frozen kernel in 8-bit floats, and products that are computed in them: e4m3 for weights and
activations, e5m2 for the gradient on its way back (Micikevicius et al., 2022, arXiv:2209.05433).

    y  = (X W^T) * s_row * s_output    X = e4m3(x / s_row),  s_row = max |row of x| / 448
    dx = (G W) * t_row                 G = e5m2(g / t_row),  g = dy * s_output,  t_row by 57344

W is stored: e4m3 of the kernel, each output divided by its own scale. A row has one scale and an
output has one (Dubey et al., 2024, arXiv:2407.21783, section 6.2), so that both stand outside the
sum. What is left is a plain product of two float8 arrays, which XLA's GemmRewriter hands to
cuBLASLt from Ada and Hopper on, with sizes padded to multiples of 16; other devices widen both
sides first. cuBLASLt wants the summed axis last on both sides: so lies the kernel, [out, in], for
the forward pass, and XLA turns it for the backward pass. At JAX's default precision cuBLASLt may
add 8-bit products up with fewer bits than float32 has.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
LEAST_SCALE = 1e-30  # of a row of zeros


@flax.struct.dataclass
class Float8:
    """A kernel [..., in, out], turned: e4m3 [..., out, in] and float32 scales [..., out, 1]."""

    codes_oi: jax.Array
    scales_o1: jax.Array
    kind: str = flax.struct.field(pytree_node=False, default="fp8")


def to_float8(kernel_io: jax.Array) -> Float8:
    """A kernel's nearest values in e4m3, every output on the scale of its largest weight."""
    return Float8(*rounded(kernel_io.T, E4M3))


def from_float8(kernel: Float8, dtype: jnp.dtype) -> jax.Array:
    """The kernel [..., in, out] that is computed with."""
    kernel_oi = kernel.codes_oi.astype(jnp.float32) * kernel.scales_o1
    return jnp.swapaxes(kernel_oi, -1, -2).astype(dtype)


def rounded(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """(codes, scales [..., 1]): `codes * scales` is about `x`. Every row's largest value comes on
    the largest of `dtype`: a cast makes NaN or infinity only of what is half a step above it."""
    top, x = float(jnp.finfo(dtype).max), x.astype(jnp.float32)
    scales = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True) / top, LEAST_SCALE)
    return (x / scales).astype(dtype), scales


@jax.custom_vjp
def apply_float8(x_bti: jax.Array, kernel: Float8) -> jax.Array:
    """`x W` in the dtype of x. Gradients are those of x alone: the kernel is frozen."""
    codes_bti, scales_bt1 = rounded(x_bti, E4M3)
    sums_bto = _product(codes_bti, kernel.codes_oi, 1, x_bti.dtype)
    return (sums_bto * scales_bt1 * kernel.scales_o1[:, 0]).astype(x_bti.dtype)


def _forward(x_bti, kernel):
    return apply_float8(x_bti, kernel), kernel


def _backward(kernel, slope_bto):
    codes_bto, scales_bt1 = rounded(slope_bto * kernel.scales_o1[:, 0], E5M2)
    sums_bti = _product(codes_bto, kernel.codes_oi, 0, slope_bto.dtype)
    return (sums_bti * scales_bt1).astype(slope_bto.dtype), None


apply_float8.defvjp(_forward, _backward)


def _product(left: jax.Array, kernel_oi: jax.Array, axis: int, dtype: Any) -> jax.Array:
    """Sums over the last axis of `left` and this one of the kernel."""
    dimensions = (((left.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(left, kernel_oi, dimensions, preferred_element_type=dtype)
