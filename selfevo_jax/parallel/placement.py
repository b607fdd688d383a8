"""What each array gets on a mesh: its share on one chip, and big ones that are not shared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from selfevo_jax.parallel.rules import path_name

BIG = 16 * 2**20


@dataclass(frozen=True)
class Placement:
    """An array: shape, the mesh axes it is split over, bytes in all and on one chip."""

    name: str
    shape: tuple[int, ...]
    axes: str
    bytes: int
    chip_bytes: int

    @property
    def replicated(self) -> bool:
        """Every chip holds the whole of it."""
        return self.bytes == self.chip_bytes


def placements(tree: Any) -> list[Placement]:
    """Of every array in a tree, or of what stands for one (`ShapeDtypeStruct` with a sharding)."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [_placement(path_name(path), leaf) for path, leaf in leaves]


def replication_warnings(tree: Any, chips: int) -> list[str]:
    """One line for every big array that each of several chips holds whole."""
    found = [p for p in placements(tree) if p.replicated and p.bytes >= BIG] if chips > 1 else []
    return [
        f"{p.name} {list(p.shape)} is replicated: {p.bytes / 2**20:.0f} MiB on every chip"
        for p in found
    ]


def _placement(name: str, leaf: Any) -> Placement:
    width = leaf.dtype.itemsize
    share = math.prod(leaf.sharding.shard_shape(leaf.shape)) * width
    axes = ",".join(str(axis) if axis else "-" for axis in leaf.sharding.spec)
    return Placement(name, leaf.shape, axes or "-", math.prod(leaf.shape) * width, share)
