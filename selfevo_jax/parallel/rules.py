"""Which axis of the mesh each parameter is split over: an ordered list of (regex, spec).

The first rule whose expression is found in a leaf's path wins. Kernels are [layers, in, out]:
projections into a layer's inner width are split `in` over fsdp and `out` over tensor, those
out of it the other way round, so that a layer needs one reduction over `tensor`. A kernel in 8-bit
floats lies turned, [layers, out, in], beside its scales [layers, out, 1]. LoRA's `a`
keeps its kernel's input axis and `b` its output axis; the rank is never split. What `tensor`
leaves whole of an adapter is split over fsdp too: its optimiser state is four times as big, and
a step gathers it once (`gathered`). Whatever is split over fsdp is split over `sequence` as well.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from selfevo_jax.parallel.mesh import BATCH_AXES

RULES: tuple[tuple[str, P], ...] = (
    (r"embed_tokens/embedding", P("tensor", "fsdp")),
    (r"lm_head/kernel", P("fsdp", "tensor")),
    (r"(q|k|v|gate|up)_proj/kernel/\w+_o", P(None, "tensor", "fsdp")),
    (r"(o|down)_proj/kernel/\w+_o", P(None, "fsdp", "tensor")),
    (r"(q|k|v|gate|up)_proj/kernel", P(None, "fsdp", "tensor")),
    (r"(o|down)_proj/kernel", P(None, "tensor", "fsdp")),
    (r"(q|k|v)_proj/bias", P(None, "tensor")),
    (r"(q|k|v|gate|up)_proj/a", P(None, "fsdp", None)),
    (r"(q|k|v|gate|up)_proj/b", P(None, None, ("tensor", "fsdp"))),
    (r"(o|down)_proj/a", P(None, ("tensor", "fsdp"), None)),
    (r"(o|down)_proj/b", P(None, None, "fsdp")),
    (r".*", P()),
)


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as `layers/attn/q_proj/kernel`."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    )


def spec_for(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The first matching rule's spec, without the axes that do not divide this shape."""
    spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
    if len(spec) > len(shape):
        return P()
    return P(*(_dividing(axes, size, mesh) for axes, size in zip(spec, shape, strict=False)))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf (array or ShapeDtypeStruct) of a parameter-like tree.

    Optimiser states repeat the parameter paths, so the same rules place them.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh)), tree
    )


def one_layer(places: Any) -> Any:
    """The shardings of stacked layers as those of one of them."""
    return jax.tree.map(lambda where: NamedSharding(where.mesh, P(*where.spec[1:])), places)


def same_shares(tree: Any, mesh: Mesh) -> Any:
    """Parameters under another mesh of the same chips, by which each of them has the same share
    (`mesh.local_mesh`): nothing is copied, but for a leaf that is too odd to be split alike."""

    def same(leaf: jax.Array, where: NamedSharding) -> jax.Array:
        if leaf.sharding.shard_shape(leaf.shape) != where.shard_shape(leaf.shape):
            return jax.device_put(leaf, where)
        shards = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, where, shards)

    return jax.tree.map(same, tree, shardings(tree, mesh))


def gathered(tree: Any) -> Any:
    """A small tree whole along `fsdp` on every chip, still split over `tensor`; for use in `jit`.

    One exchange before the layers, in place of two little ones for every matrix of every layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        spec = spec_for(path_name(path), leaf.shape, mesh)
        kept = P(*(_named([axis for axis in _axes(axes) if axis == "tensor"]) for axes in spec))
        return jax.lax.with_sharding_constraint(leaf, kept)

    return jax.tree_util.tree_map_with_path(gather, tree)


def by_feature(x_btd: jax.Array) -> jax.Array:
    """An activation [b, t, d] split as the kernels' inputs are; for use in `jit`."""
    return _constrained(x_btd, P("data", None, "fsdp"))


def by_token_id(scores_bv: jax.Array) -> jax.Array:
    """Scores [b, v] split by row, and by token id as the output head is; for use in `jit`."""
    return _constrained(scores_bv, P(BATCH_AXES, "tensor"))


def _constrained(x: jax.Array, spec: P) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    fit = P(*(_dividing(axes, size, mesh) for axes, size in zip(spec, x.shape, strict=True)))
    return jax.lax.with_sharding_constraint(x, fit)


def _dividing(axes: Any, size: int, mesh: Mesh) -> Any:
    """The longest beginning of these axes whose product divides `size`."""
    kept = list(_axes(axes))
    if "fsdp" in kept and mesh.shape["sequence"] > 1:
        kept.append("sequence")
    while kept and size % math.prod(mesh.shape[axis] for axis in kept):
        kept.pop()
    return _named(kept)


def _axes(axes: Any) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _named(axes: list[str]) -> Any:
    """As a `PartitionSpec` writes it: None, one name, or several."""
    return tuple(axes) if len(axes) > 1 else (axes[0] if axes else None)
