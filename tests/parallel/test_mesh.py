"""Mesh strings, and the placement of every parameter."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from selfevo_jax.errors import UserError
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.models.presets import preset
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings, spec_for


@pytest.fixture
def mesh_4x2():
    """A mesh of this machine's one device, described as fsdp 4 x tensor 2."""
    return jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))


def test_one_size_may_be_left_open():
    assert dict(make_mesh("1,-1,1").shape) == {"data": 1, "fsdp": jax.device_count(), "tensor": 1}


@pytest.mark.parametrize("shape", ["2,3,5", "-1,-1,1", "1,1", "a,b,c", "0,1,1"])
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
