"""Traffic and FLOPs against sums made by hand and against XLA's own analysis."""

import jax
import jax.numpy as jnp
import pytest

from selfevo_jax.aot.flops import flops
from selfevo_jax.aot.hlo import array_bytes, traffic

MODULE = """HloModule m, is_scheduled=true

%fused (p0: f32[8,100], p1: s32[]) -> f32[1,100] {
  %p0 = f32[8,100]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,100]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,100}
}

%cond (c: (s32[], f32[8,100])) -> pred[] {
  %c = (s32[], f32[8,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (b: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %b = (s32[], f32[8,100]{1,0}) parameter(0)
  %j = s32[]{:S(6)} get-tuple-element(%b), index=0
  %x = f32[8,100]{1,0} get-tuple-element(%b), index=1
  %row = f32[1,100]{1,0} fusion(%x, %j), kind=kLoop, calls=%fused
  %all = f32[4,100]{1,0:S(1)} all-gather(%row), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %again = f32[4,100]{1,0:S(1)} all-gather(%row), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (s32[], f32[8,100]{1,0}) tuple(%j, %x)
}

ENTRY %main (a: f32[8,100]) -> f32[8,100] {
  %a = f32[8,100]{1,0} parameter(0)
  %k = s32[] constant(0)
  %start = (s32[], f32[8,100]{1,0}) tuple(%k, %a)
  %loop = (s32[], f32[8,100]{1,0}) while(%start), condition=%cond, body=%body
  %y = f32[8,100]{1,0} get-tuple-element(%loop), index=1
  %sum = f32[8,100]{1,0} all-reduce(%y), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %z = f32[8,100]{1,0} add(%sum, %y)
}
"""  # noqa: E501


def test_loops_slices_and_groups_are_counted():
    found = traffic(MODULE)
    row, whole = 400, 3200
    # Each turn: the fusion reads and writes one row; both gathers read it, their output is on chip.
    turn = 2 * row + 2 * row
    assert found.hbm_bytes == 5 * turn + 2 * whole + 3 * whole
    assert found.collectives == {
        "all-gather": (5.0, 5 * 3 * row),  # one channel is one transfer
        "all-reduce": (1.0, 2 * whole * 3 / 4),
    }


PREFETCH = """HloModule m, is_scheduled=true

ENTRY %main (a: bf16[64,100]) -> bf16[16,100] {
  %a = bf16[64,100]{1,0} parameter(0)
  %ahead = ((bf16[64,100]{1,0}), bf16[16,100]{1,0:S(3)}, s32[]{:S(2)}) slice-start(%a), slice={[16:32], [0:100]}
  ROOT %there = bf16[16,100]{1,0:S(3)} slice-done(%ahead)
}
"""  # noqa: E501


def test_a_slice_that_is_fetched_ahead_is_no_more_than_a_slice():
    """The whole that it is cut from stands in its type, and was counted: four times too much."""
    assert traffic(PREFETCH).hbm_bytes == 16 * 100 * 2


SCATTER = """HloModule m, is_scheduled=true

%fused (p0: f32[64,100], p1: s32[2,1], p2: f32[2,100]) -> f32[64,100] {
  %p0 = f32[64,100]{1,0} parameter(0)
  %p1 = s32[2,1]{1,0} parameter(1)
  %p2 = f32[2,100]{1,0} parameter(2)
  ROOT %put = f32[64,100]{1,0} scatter(%p0, %p1, %p2), to_apply=%last
}

ENTRY %main (a: f32[64,100], i: s32[2,1], u: f32[2,100]) -> f32[64,100] {
  %a = f32[64,100]{1,0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  %u = f32[2,100]{1,0} parameter(2)
  ROOT %new = f32[64,100]{1,0} fusion(%a, %i, %u), kind=kInput, calls=%fused
}
"""


def test_what_is_scattered_into_an_array_is_all_that_is_written():
    """A token's keys go into a cache of thousands in place, which was counted twice as a whole."""
    assert traffic(SCATTER).hbm_bytes == 2 * 4 + 2 * 800


KERNEL = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[64,100], u: f32[2,100]) -> f32[64,100] {
  %a = f32[64,100]{1,0} parameter(0)
  %u = f32[2,100]{1,0} parameter(1)
  ROOT %new = f32[64,100]{1,0} custom-call(%a, %u), custom_call_target="tpu_custom_call", output_to_operand_aliasing={{}: (0, {})}, backend_config={"custom_call_config":{"body":"","cost_estimate":{"flops":"7","transcendentals":"0","bytes_accessed":"1600"}}}
}
"""  # noqa: E501


def test_a_kernel_says_what_it_moves():
    """Decoding's changes a few slots of a cache, which stands in its type as a whole."""
    assert traffic(KERNEL).hbm_bytes == 1600


def test_a_loop_without_a_bound_runs_as_often_as_said():
    text = MODULE.replace("%n = s32[] constant(5)", "%n = s32[] get-tuple-element(%c), index=0")
    assert traffic(text, 7).collectives["all-gather"][0] == 7


def test_bytes_of_types():
    assert array_bytes("(bf16[2,3]{1,0}, s4[8], pred[])") == 12 + 4 + 1
    assert array_bytes("f32[4]{0:T(128)S(1)}") == 0
    assert array_bytes("f32[4]{0:T(128)S(1)}", hbm_only=False) == 16


@pytest.mark.parametrize("remat", [False, True])
def test_flops_equal_those_of_xla(remat):
    """Layers in a scan of one turn, which XLA counts right; ours holds for any number of turns."""
    width, depth = 256, 7

    def step(kernels_ldd, x_bd):
        def layer(x_bd, kernel_dd):
            return jax.nn.relu(x_bd @ kernel_dd), None

        layer = jax.checkpoint(layer) if remat else layer
        return jnp.sum(jax.lax.scan(layer, x_bd, kernels_ldd)[0] ** 2)

    def shapes(layers):
        return (
            jax.ShapeDtypeStruct((layers, width, width), jnp.float32),
            jax.ShapeDtypeStruct((128, width), jnp.float32),
        )

    gradient = jax.jit(jax.grad(step, argnums=(0, 1)))
    ours = flops(gradient.trace(*shapes(1)).jaxpr)
    theirs = gradient.lower(*shapes(1)).compile().cost_analysis()["flops"]
    if not remat:  # XLA merges what is computed twice in a single turn
        assert ours == pytest.approx(theirs, rel=0.02)
    product = 2 * 128 * width * width
    assert ours == (4 if remat else 3) * product
    assert flops(gradient.trace(*shapes(depth)).jaxpr) == depth * ours
