"""Which axis of the mesh each parameter is split over: an ordered list of (regex, spec).

The first rule whose expression is found in a leaf's path wins. Kernels are [layers, in, out]:
projections into a layer's inner width are split `in` over fsdp and `out` over tensor, those
out of it the other way round, so that a layer needs one reduction over `tensor`. LoRA's `a`
keeps its kernel's input axis and `b` its output axis; the rank is never split.
"""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

RULES: tuple[tuple[str, P], ...] = (
    (r"embed_tokens/embedding", P("tensor", "fsdp")),
    (r"lm_head/kernel", P("fsdp", "tensor")),
    (r"(q|k|v|gate|up)_proj/kernel", P(None, "fsdp", "tensor")),
    (r"(o|down)_proj/kernel", P(None, "tensor", "fsdp")),
    (r"(q|k|v)_proj/bias", P(None, "tensor")),
    (r"(q|k|v|gate|up)_proj/a", P(None, "fsdp", None)),
    (r"(q|k|v|gate|up)_proj/b", P(None, None, "tensor")),
    (r"(o|down)_proj/a", P(None, "tensor", None)),
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
    return P(
        *(
            axis if _divides(axis, size, mesh) else None
            for axis, size in zip(spec, shape, strict=False)
        )
    )


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf (array or ShapeDtypeStruct) of a parameter-like tree.

    Optimiser states repeat the parameter paths, so the same rules place them.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh)), tree
    )


def _divides(axis: str | None, size: int, mesh: Mesh) -> bool:
    return axis is not None and size % mesh.shape[axis] == 0
