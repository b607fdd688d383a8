"""The device mesh: axes `data` (copies), `fsdp` (sharded copies) and `tensor` (split layers)."""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from selfevo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(shape: str = "1,-1,1", devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh from `data,fsdp,tensor` sizes, one of which may be -1 (what is left).

    Axes are `Auto`: the compiler propagates shardings from parameters and batch.
    Raises `UserError` when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(shape, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def local_mesh(mesh: Mesh) -> Mesh:
    """The mesh of this host's devices alone, split like `mesh` as far as they reach.

    The whole of `mesh` where there is one host.
    """
    if jax.process_count() == 1:
        return mesh
    left, sizes = jax.local_device_count(), {}
    for axis in ("tensor", "fsdp"):
        sizes[axis] = math.gcd(mesh.shape[axis], left)
        left //= sizes[axis]
    return make_mesh(f"{left},{sizes['fsdp']},{sizes['tensor']}", jax.local_devices())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`, everything else whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keep the first axis of an activation split over the batch axes; nothing without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES))


def _sizes(shape: str, count: int) -> tuple[int, ...]:
    try:
        sizes = [int(part) for part in shape.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise UserError(
            f"mesh {shape!r} must be {len(AXES)} sizes for {','.join(AXES)}, one of which may be -1"
        )
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise UserError(
            f"mesh {shape!r} does not fit {count} devices: choose sizes whose product is {count}"
        )
    return tuple(sizes)
