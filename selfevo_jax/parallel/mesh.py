"""The device mesh: axes `data` (copies), `fsdp` (sharded copies), `tensor` (split layers) and
`sequence` (split rows).

Rows of a batch are split over `data` and `fsdp`, the places of a row over `sequence`. Parameters
are split over `fsdp`, `sequence` and `tensor` (see rules.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from selfevo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")
_AUTO = (AxisType.Auto,) * len(AXES)  # the compiler propagates shardings from parameters and batch


def make_mesh(shape: str = "1,-1,1", devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh from `data,fsdp,tensor[,sequence]` sizes, one of which may be -1 (what is left).

    Raises `UserError` when the sizes do not multiply to the number of devices, or do not go over
    the slices that these belong to.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(shape, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        return Mesh(grid_of_slices(sizes, slices, devices), AXES, axis_types=_AUTO)
    # An axis may take a part of a side of the slice (1,16,4 on 8x8), which jax.make_mesh refuses.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=_AUTO)


def grid_of_slices(sizes: Sequence[int], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """The devices of several slices, whose links to each other are slow, in the shape of a mesh.

    The axes that exchange least go over the slices: `data`, which exchanges gradients alone, as
    far as it divides, then `fsdp`. Raises `UserError` where these two do not reach.
    """
    data = math.gcd(sizes[0], slices)
    across = (data, slices // data, 1, 1)
    if sizes[1] % across[1]:
        raise UserError(
            f"mesh {','.join(map(str, sizes))} does not go over {slices} slices: choose data and "
            f"fsdp so that each slice holds whole parts of them, such as data {slices}"
        )
    within = [size // outer for size, outer in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def local_mesh(mesh: Mesh) -> Mesh:
    """The mesh of this host's devices alone for sampling, split like `mesh` as far as they reach.

    Sampling splits no rows: `fsdp` takes the chips of `sequence`, so that with one host each
    chip's share of the parameters is the same.
    """
    if jax.process_count() == 1:
        data, fsdp, tensor, sequence = mesh.devices.shape
        folded = mesh.devices.swapaxes(2, 3).reshape(data, fsdp * sequence, tensor, 1)
        return mesh if sequence == 1 else Mesh(folded, AXES, axis_types=_AUTO)
    tensor = math.gcd(mesh.shape["tensor"], jax.local_device_count())
    left = jax.local_device_count() // tensor
    fsdp = math.gcd(mesh.shape["fsdp"] * mesh.shape["sequence"], left)
    return make_mesh(f"{left // fsdp},{fsdp},{tensor}", jax.local_devices())


def with_layers_split(mesh: Mesh, key_heads: int) -> Mesh:
    """The chips of a mesh with those of `fsdp` in `tensor`, as far as that divides the heads.

    To sample is to read all weights for each token. Under `tensor` every chip reads its share;
    under `fsdp` it would be sent those of all others first.
    """
    data, fsdp, tensor, sequence = mesh.devices.shape
    moved = 1 if key_heads % tensor else math.gcd(fsdp, key_heads // tensor)
    grid = mesh.devices.reshape(data, fsdp // moved, moved * tensor, sequence)
    return Mesh(grid, AXES, axis_types=_AUTO)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`, everything else whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def constrain_batch(x_bt: jax.Array) -> jax.Array:
    """Keep an activation [b, t, ...] split: rows over the batch axes, places over `sequence`.

    Nothing without a mesh.
    """
    return _constrain(x_bt, P(BATCH_AXES, "sequence"))


def constrain_parts(x_bt: jax.Array) -> jax.Array:
    """Keep rows that are parts of rows split over the batch axes and `sequence` together."""
    return _constrain(x_bt, P((*BATCH_AXES, "sequence")))


def sequence_parts() -> int:
    """Into how many parts the mesh in use splits a row."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["sequence"]


def _constrain(x: jax.Array, spec: P) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def _sizes(shape: str, count: int) -> tuple[int, ...]:
    try:
        sizes = [int(part) for part in shape.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) == len(AXES) - 1:
        sizes.append(1)
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise UserError(
            f"mesh {shape!r} must be sizes for data,fsdp,tensor or {','.join(AXES)}, one of which "
            "may be -1"
        )
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise UserError(
            f"mesh {shape!r} does not fit {count} devices: choose sizes whose product is {count}"
        )
    return tuple(sizes)
