"""A frozen base in 4 or 8 bits: what QLoRA trains an adapter on (Dettmers et al., 2023,
arXiv:2305.14314).

    nf4   blocks of 64 inputs of one output share a scale; a value is one of 16 quantiles of a
          normal distribution. The scales are themselves stored in 8 bits (double quantisation):
          their mean apart, 256 to a block, in bitsandbytes' dynamic 8-bit code.
    int8  one scale for all inputs of an output, values rounded to -127 .. 127
    fp8   likewise, in 8-bit floats; products are computed in them too (`float8`)

Only the layers' projection kernels are stored so; embeddings, head and norms stay as they are. A
kernel in nf4 or int8 is made whole again where it is used, one layer at a time, in the compute
dtype; its arrays are laid out like the kernel [layers, in, out], so the kernel's sharding rule
fits them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from selfevo_jax.errors import UserError
from selfevo_jax.models.float8 import Float8, apply_float8, from_float8, to_float8

BLOCK, SCALE_BLOCK = 64, 256
BYTES = {  # of a value
    "nf4": (4 + 8 / BLOCK + 32 / (BLOCK * SCALE_BLOCK)) / 8, "int8": 1.0, "fp8": 1.0,
}  # fmt: skip
KINDS = tuple(BYTES)

# The quantiles as bitsandbytes prints them (csrc/kernels.cu; QLoRA, appendix E).
NF4_TABLE = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


@flax.struct.dataclass
class Quantized:
    """A kernel [..., in, out] in few bits; leading axes are carried along.

    codes   nf4: uint8 [..., in/2, out], the even input in the high half; int8: [..., in, out]
    scales  nf4: uint8 [..., in/block, out], places in `dynamic_table`; int8: float32 [..., 1, out]
    second  float32 [..., n], the scales' scales (int8: n is 0)
    mean    float32 [...], the scales' mean (int8: 0)
    """

    codes: jax.Array
    scales: jax.Array
    second: jax.Array
    mean: jax.Array
    kind: str = flax.struct.field(pytree_node=False)


Stored = Quantized | Float8


def quantize_base(params: dict, kind: str) -> dict:
    """The parameter tree with every projection kernel of the layers as a `Stored`.

    Raises UserError for an unknown kind and for a base that is quantised already.
    """
    if kind not in KINDS:
        raise UserError(f"quantisation {kind!r} is unknown; use {' or '.join(KINDS)}")
    refuse_quantized(params, "quantise the base again")
    make = jax.jit(jax.vmap(functools.partial(_quantize, kind=kind)))
    flat = flatten_dict(params)
    for path, leaf in flat.items():
        if path[0] == "layers" and path[-1] == "kernel":
            flat[path] = make(leaf)
    return unflatten_dict(flat)


def dequantize_base(params: dict, dtype: jnp.dtype = jnp.float32) -> dict:
    """The tree with every `Stored` kernel as the values that its codes stand for: the same
    function of the inputs, so an adapter trained on the codes may be merged into it exactly. (With
    fp8, but for the rounding of the inputs.)"""
    flat = flatten_dict(params)
    make = jax.jit(functools.partial(dequantize, dtype=dtype))
    return unflatten_dict(
        {path: make(leaf) if isinstance(leaf, Stored) else leaf for path, leaf in flat.items()}
    )


def quantization(params: dict) -> str | None:
    """The kind of the quantised kernels in a tree, None where there are none."""
    kinds = {leaf.kind for leaf in flatten_dict(params).values() if isinstance(leaf, Stored)}
    return kinds.pop() if kinds else None


def refuse_quantized(params: dict, action: str) -> None:
    """Raises UserError when `params` has quantised kernels; `action` ends "cannot ..."."""
    kind = quantization(params)
    if kind is not None:
        raise UserError(
            f"cannot {action}: its kernels are stored as {kind} and would lose what is added; "
            "load the base in full precision for this"
        )


def dequantize(kernel: Stored, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """The kernel [..., in, out] that the codes stand for."""
    if isinstance(kernel, Float8):
        return from_float8(kernel, dtype)
    if kernel.kind == "int8":
        return (kernel.codes * kernel.scales).astype(dtype)
    return _each(kernel.codes.ndim - 2, functools.partial(_dequantize_nf4, dtype=dtype))(kernel)


def apply_quantized(x_bti: jax.Array, kernel: Stored) -> jax.Array:
    """`x W`; the backward pass makes W again instead of keeping it."""
    if isinstance(kernel, Float8):
        return apply_float8(x_bti, kernel)
    product = jax.checkpoint(lambda x, k: x @ dequantize(k, x.dtype), prevent_cse=False)
    return product(x_bti, kernel)


@functools.cache
def dynamic_table() -> np.ndarray:
    """bitsandbytes' signed 8-bit dynamic code, ascending float32 [256]: seven decades, each with
    twice the values of the one below (Dettmers, 2016, arXiv:1511.04561)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        borders = np.linspace(0.1, 1, 2**exponent + 1, dtype=np.float32)
        means = 10.0 ** (exponent - 6) * (borders[:-1] + borders[1:]) / 2
        values += [*means, *-means]
    return np.sort(np.array(values, np.float32))


def _quantize(kernel_io: jax.Array, kind: str) -> Stored:
    make = {"nf4": _quantize_nf4, "int8": _quantize_int8, "fp8": to_float8}
    return make[kind](kernel_io.astype(jnp.float32))


def _quantize_int8(kernel_io):
    scales_1o = jnp.maximum(jnp.max(jnp.abs(kernel_io), axis=0, keepdims=True) / 127, 1e-30)
    codes_io = jnp.round(kernel_io / scales_1o).astype(jnp.int8)
    return Quantized(codes_io, scales_1o, jnp.zeros(0), jnp.zeros(()), "int8")


def _quantize_nf4(kernel_io):
    width_in, width_out = kernel_io.shape
    block = math.gcd(width_in, BLOCK)
    if block % 2:
        raise UserError(f"nf4 packs inputs in pairs; a kernel of {width_in} inputs has none")
    blocks_ngo = kernel_io.reshape(-1, block, width_out)
    scales_no = jnp.max(jnp.abs(blocks_ngo), axis=1)
    safe_no = jnp.where(scales_no == 0, 1.0, scales_no)
    codes_io = _nearest(blocks_ngo / safe_no[:, None], NF4_TABLE).reshape(width_in, width_out)
    packed = (codes_io[0::2] << 4) | codes_io[1::2]
    return Quantized(packed.astype(jnp.uint8), *_quantize_scales(scales_no), "nf4")


def _quantize_scales(scales_no):
    """(codes, second scales, mean): double quantisation, 256 scales at a time."""
    mean = jnp.mean(scales_no)
    rest_no = scales_no - mean
    places_no, count = _scale_blocks(scales_no.shape)
    second_m = jnp.zeros(count).at[places_no].max(jnp.abs(rest_no))
    safe_m = jnp.where(second_m == 0, 1.0, second_m)
    codes_no = _nearest(rest_no / safe_m[places_no], dynamic_table())
    return codes_no.astype(jnp.uint8), second_m, mean


def _scale_blocks(shape):
    """For each scale [n, o] its second-level block, counted output by output as bitsandbytes lies
    in memory, and the number of blocks."""
    per_output, outputs = shape
    order_no = np.arange(per_output * outputs).reshape(outputs, per_output).T
    return order_no // SCALE_BLOCK, -(-per_output * outputs // SCALE_BLOCK)


def _nearest(values: jax.Array, table: np.ndarray) -> jax.Array:
    """Index of the nearest entry of an ascending table."""
    middles = jnp.asarray((table[:-1] + table[1:]) / 2)
    return jnp.searchsorted(middles, values, side="left").astype(jnp.int32)


def _dequantize_nf4(kernel: Quantized, dtype) -> jax.Array:
    places_no, _ = _scale_blocks(kernel.scales.shape)
    table = jnp.asarray(dynamic_table())
    scales_no = table[kernel.scales.astype(jnp.int32)] * kernel.second[places_no] + kernel.mean
    half, width_out = kernel.codes.shape
    pairs = jnp.stack([kernel.codes >> 4, kernel.codes & 15], axis=1).astype(jnp.int32)
    values_ngo = jnp.asarray(NF4_TABLE)[pairs].reshape(scales_no.shape[0], -1, width_out)
    return (values_ngo * scales_no[:, None]).reshape(2 * half, width_out).astype(dtype)


def _each(depth: int, function: Any) -> Any:
    """`function` over so many leading axes."""
    return _each(depth - 1, jax.vmap(function)) if depth else function
