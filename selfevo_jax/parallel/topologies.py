"""TPU slices and machines with NVIDIA cards by name, and what one chip of each kind can do.

A slice is named as Google Cloud names it, `v5e-16` or `v4-32`, or by the shape of its chips,
`v5e:4x4`. For v4 and v5p the number in a cloud name counts TensorCores, two to a chip; for
v5e and v6e it counts chips. `h100:8` are eight cards joined by NVLink.

Sources: https://cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} (peak compute, HBM, its bandwidth,
links), and cards.py; `hbm_bytes` is the part that a program can use. For v5e it is what libtpu
0.0.42.1 states when a program asks for more; for the other slices it is the chip's size less the
same kind of reserve. Of a card JAX takes three quarters, unless XLA_PYTHON_CLIENT_MEM_FRACTION
says otherwise.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental.topologies import TopologyDescription, get_topology_desc

from selfevo_jax.errors import UserError
from selfevo_jax.parallel.cards import CARDS, target

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, or one card. `links` is the number of neighbours; bandwidths in bytes a second.

    `link_bandwidth` is that of one link in one direction.
    """

    generation: str
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    links: int

    @property
    def ici_bandwidth(self) -> float:
        """Bytes a second that a chip sends over all its links together."""
        return self.link_bandwidth * self.links


CHIPS = {
    chip.generation: chip
    for chip in (
        Chip("v4", int(31.75 * GIB), 275e12, 1228e9, 50e9, 6),
        Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 50e9, 4),
        Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 100e9, 6),
        Chip("v6e", int(31.25 * GIB), 918e12, 1640e9, 112e9, 4),
        *(
            Chip(
                name, card.memory_bytes * 3 // 4, card.peak_flops, card.memory_bandwidth,
                card.link_bandwidth, 1,
            )
            for name, card in CARDS.items()
        ),
    )
}  # fmt: skip
_TWO_CORES = ("v4", "v5p")
_SHAPES_2D = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_SHAPES_3D = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4",
    128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
}  # fmt: skip
_MACHINES = {count: str(count) for count in (1, 2, 4, 8)}
# libtpu describes a v4 chip as two cores unless told that they work as one.
_OPTIONS = {"v4": {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}}


@dataclass(frozen=True)
class Topology:
    """A slice or a machine: the chip and the shape in which its chips are wired."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Such as `v5e:4x4` or `h100:8`."""
        return f"{self.chip.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many chips there are."""
        return math.prod(self.shape)


def topology(name: str) -> Topology:
    """The slice of a name such as `v5e-16`, `v4-32`, `v5e:4x4`, `v5e:16` (chips) or `h100:8`.

    Raises `UserError` for a generation, a number of chips, or a shape that does not exist.
    """
    match = re.fullmatch(r"(\w+?)([:-])(\d+(?:x\d+)*)", name.lower())
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"topology {name!r} is unknown: use a name such as v5e-16, v5e:4x4 or h100:8, "
            f"of {', '.join(CHIPS)}"
        )
    chip, size = CHIPS[match[1]], match[3]
    if "x" in size:
        return Topology(chip, _checked(name, chip, tuple(map(int, size.split("x")))))
    cores = 2 if match[2] == "-" and chip.generation in _TWO_CORES else 1
    shapes = _shapes(chip)
    if int(size) % cores or int(size) // cores not in shapes:
        known = ", ".join(f"{chip.generation}{match[2]}{count * cores}" for count in shapes)
        raise UserError(f"topology {name!r} is not a size that exists: use one of {known}")
    return Topology(chip, tuple(map(int, shapes[int(size) // cores].split("x"))))


def devices(topology: Topology) -> list[jax.Device]:
    """Descriptions of the chips that programs can be compiled for; none of them need be here.

    Raises `UserError` when their compiler is not installed or does not know them.
    """
    describe = _cards if topology.chip.generation in CARDS else _tpus
    return list(describe(topology).devices)


def _tpus(topology: Topology) -> TopologyDescription:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud that is not there
    # No chip is opened, so several processes may describe and compile at the same time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = _OPTIONS.get(topology.chip.generation, {})
    try:
        return get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except (RuntimeError, NotImplementedError) as error:
        raise _not_described(topology, error, "TPUs needs libtpu", "tpu-aot") from error


def _cards(topology: Topology) -> TopologyDescription:
    described = target(CARDS[topology.chip.generation])
    try:
        return get_topology_desc(
            platform="cuda", topology=f"1x1x{topology.chips}", target_config=described
        )
    except (RuntimeError, NotImplementedError) as error:
        raise _not_described(topology, error, "NVIDIA cards needs JAX's plugin", "cuda") from error


def _not_described(topology: Topology, error: Exception, needs: str, extra: str) -> UserError:
    return UserError(
        f"cannot describe {topology.name}: {str(error).splitlines()[0]}; compiling for {needs}: "
        f"pip install 'selfevo_jax[{extra}]'"
    )


def _shapes(chip: Chip) -> dict[int, str]:
    if chip.generation in CARDS:
        return _MACHINES
    return _SHAPES_3D if chip.generation in _TWO_CORES else _SHAPES_2D


def _checked(name: str, chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
    known = [tuple(map(int, text.split("x"))) for text in _shapes(chip).values()]
    if shape not in known:
        names = ", ".join(f"{chip.generation}:{text}" for text in _shapes(chip).values())
        raise UserError(f"topology {name!r} is not a shape that exists: use one of {names}")
    return shape
