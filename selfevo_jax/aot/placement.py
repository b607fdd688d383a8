"""What each array of a step gets: its share on one chip, and big ones that are not shared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax

from selfevo_jax.aot.steps import Case, parameters
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


def placements(case: Case) -> list[Placement]:
    """Everything that a step keeps in HBM from one call to the next."""
    mesh = case.on_mesh()
    leaves = jax.tree_util.tree_flatten_with_path(parameters(case, mesh))[0]
    return [_placement(path_name(path), leaf) for path, leaf in leaves]


def warnings(case: Case) -> list[str]:
    """One line for every big array that each chip holds whole."""
    if case.slice.chips == 1:
        return []
    return [
        f"{p.name} {list(p.shape)} is replicated: {p.bytes / 2**20:.0f} MiB on every chip"
        for p in placements(case)
        if p.replicated and p.bytes >= BIG
    ]


def _placement(name: str, leaf: jax.ShapeDtypeStruct) -> Placement:
    width = leaf.dtype.itemsize
    share = math.prod(leaf.sharding.shard_shape(leaf.shape)) * width
    axes = ",".join(str(axis) if axis else "-" for axis in leaf.sharding.spec)
    return Placement(name, leaf.shape, axes or "-", math.prod(leaf.shape) * width, share)
