"""Mesh strings, and the placement of every parameter."""

import importlib.util
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

from selfevo_jax.errors import UserError
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.models.presets import preset
from selfevo_jax.parallel.mesh import AXES, grid_of_slices, make_mesh, with_layers_split
from selfevo_jax.parallel.placement import placements, replication_warnings
from selfevo_jax.parallel.rules import shardings, spec_for
from selfevo_jax.parallel.topologies import devices, topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu describes TPUs; not installed"
)


@pytest.fixture
def mesh_4x2():
    """A mesh of this machine's one device, described as fsdp 4 x tensor 2."""
    return jax.sharding.AbstractMesh((1, 4, 2, 1), AXES)


def test_one_size_may_be_left_open():
    sizes = {"data": 1, "fsdp": jax.device_count(), "tensor": 1, "sequence": 1}
    assert dict(make_mesh("1,-1,1").shape) == dict(make_mesh("1,-1,1,1").shape) == sizes


@pytest.mark.parametrize("shape", ["2,3,5", "-1,-1,1", "1,1", "a,b,c", "0,1,1", "1,1,1,1,1"])
def test_a_wrong_mesh_is_refused(shape):
    with pytest.raises(UserError, match="mesh"):
        make_mesh(shape)


def test_kernels_are_split_both_ways(mesh_4x2):
    assert spec_for("layers/attn/q_proj/kernel", (2, 64, 64), mesh_4x2) == P(None, "fsdp", "tensor")
    assert spec_for("layers/mlp/down_proj/kernel", (2, 128, 64), mesh_4x2) == P(
        None, "tensor", "fsdp"
    )


def test_adapters_are_split_over_all_chips(mesh_4x2):
    assert spec_for("layers/mlp/down_proj/a", (2, 128, 4), mesh_4x2) == P(
        None, ("tensor", "fsdp"), None
    )
    assert spec_for("opt/0/mu/layers/attn/q_proj/b", (2, 4, 64), mesh_4x2) == P(
        None, None, ("tensor", "fsdp")
    )
    # 2 divides 66, 8 does not
    assert spec_for("layers/attn/q_proj/b", (2, 4, 66), mesh_4x2) == P(None, None, "tensor")


def test_a_big_array_that_every_chip_holds_whole_is_named(mesh_4x2):
    def array(rows: int, *axes):
        spec = jax.sharding.NamedSharding(mesh_4x2, P(*axes))
        return jax.ShapeDtypeStruct((rows, 1024), np.float32, sharding=spec)

    tree = {"shared": array(8192, "fsdp"), "whole": array(8192), "small": array(8)}
    assert replication_warnings(tree, 8) == [
        "whole [8192, 1024] is replicated: 32 MiB on every chip"
    ]
    assert replication_warnings(tree, 1) == []
    (shared,) = [p for p in placements(tree) if p.name == "shared"]
    assert (shared.axes, shared.chip_bytes * 4) == ("fsdp", shared.bytes)


def test_the_sequence_axis_holds_a_share_of_the_parameters():
    mesh = jax.sharding.AbstractMesh((1, 4, 1, 2), AXES)
    both = ("fsdp", "sequence")
    assert spec_for("layers/attn/q_proj/kernel", (2, 64, 64), mesh) == P(None, both, "tensor")
    # 4 divides 60, 8 does not
    assert spec_for("layers/attn/q_proj/kernel", (2, 60, 64), mesh) == P(None, "fsdp", "tensor")


@dataclass(frozen=True)
class Chip:
    """What is asked of a TPU chip to find its place in a mesh."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def slices(count: int) -> list[Chip]:
    """So many slices of 2 x 4 chips."""
    return [
        Chip(8 * s + 4 * y + x, s, (x, y, 0))
        for s in range(count) for y in range(2) for x in range(4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "count"),
    [((2, 8, 1, 1), 2), ((1, 16, 1, 1), 2), ((2, 8, 2, 1), 4), ((1, 4, 2, 2), 2)],
)
def test_only_data_and_fsdp_go_over_slices(sizes, count):
    """Chips that differ in `tensor` or `sequence` alone are of one slice, and so are those of each
    `fsdp` group where `data` can take the slices."""
    grid = grid_of_slices(sizes, count, slices(count))
    assert grid.shape == sizes
    number = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert len({chip.id for chip in grid.flat}) == 8 * count
    assert (number == number[:, :, :1, :1]).all()
    if sizes[0] == count:
        assert (number == number[:, :1]).all()
    assert [len(set(row)) for row in number[:, :, 0, 0]] == [count // min(sizes[0], count)] * sizes[
        0
    ]


@needs_libtpu
@pytest.mark.parametrize("name", ["v4-32", "v5e-16", "v5p-32", "v6e-8", "v6e-64"])
def test_every_division_of_a_slice_is_a_mesh(name):
    """Also where an axis takes a part of a side of the slice, as 1,16,4 does on 8x8 chips."""
    chips = devices(topology(name))
    for tensor in (1, 2, 4):
        for fsdp in (1, 2, len(chips) // tensor):
            mesh = make_mesh(f"-1,{fsdp},{tensor}", chips)
            assert set(mesh.devices.flat) == set(chips)
            assert (mesh.shape["fsdp"], mesh.shape["tensor"]) == (fsdp, tensor)


@needs_libtpu
@pytest.mark.parametrize("shape", ["2,4,1", "1,-1,1", "1,2,2,2"])
def test_a_mesh_of_two_real_slices(shape, monkeypatch):
    """What `make_mesh` makes of chips as libtpu describes them: one half of the rows a slice."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chips = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x2", num_slices=2
    ).devices
    mesh = make_mesh(shape, list(chips))
    number = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert number.reshape(2, -1).tolist() == [[0] * 4, [1] * 4]
    assert tuple(mesh.axis_names) == AXES and len(set(mesh.devices.flat)) == 8


@needs_libtpu
@pytest.mark.parametrize(
    ("shape", "heads", "wanted"),
    [
        ("1,8,1", 8, (1, 1, 8)),
        ("1,8,1", 4, (1, 2, 4)),
        ("2,4,1", 3, (2, 4, 1)),
        ("1,4,2", 8, (1, 1, 8)),
        ("1,2,4", 2, (1, 2, 4)),
    ],
)
def test_layers_are_split_as_far_as_heads_go(shape, heads, wanted):
    """By chips that were neighbours in the mesh."""
    mesh = make_mesh(shape, devices(topology("v6e-8")))
    split = with_layers_split(mesh, heads)
    assert split.devices.shape == (*wanted, 1)
    assert list(split.devices.flat) == list(mesh.devices.flat)


def test_layers_are_not_split_over_slices():
    with pytest.raises(UserError, match="4 slices"):
        grid_of_slices((1, 2, 16, 1), 4, slices(4))


def test_an_axis_that_does_not_divide_is_left_whole(mesh_4x2):
    assert spec_for("layers/attn/q_proj/kernel", (2, 63, 64), mesh_4x2) == P(None, None, "tensor")


def test_every_big_leaf_has_a_rule():
    mesh = make_mesh()
    config = preset("gemma2_2b")
    trees = [
        abstract_params(config),
        jax.eval_shape(lambda: init_lora(config, LoraConfig(), jax.random.key(0))),
    ]
    for tree in trees:
        for leaf, place in zip(
            jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, mesh)), strict=True
        ):
            assert leaf.ndim == 1 or leaf.size < 1e6 or any(place.spec)
