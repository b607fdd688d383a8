"""Quantised bases: stored values by hand, the forward pass, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import forward, init_params
from selfevo_jax.models.lora import Adapter, LoraConfig, init_lora, merge_lora
from selfevo_jax.models.quantize import (
    NF4_TABLE,
    dequantize,
    dynamic_table,
    quantization,
    quantize_base,
)
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings

TINY = ModelConfig(
    vocab_size=64, hidden_size=128, intermediate_size=192, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=32, max_position=32, tie_embeddings=True,
)  # fmt: skip


def one(kernel_io, kind):
    tree = {"layers": {"attn": {"q_proj": {"kernel": jnp.asarray(kernel_io)[None]}}}}
    return quantize_base(tree, kind)["layers"]["attn"]["q_proj"]["kernel"]


def test_nf4_by_hand():
    """One block of 64: codes are places in the table, packed with the even input above."""
    column = np.zeros(64, np.float32)
    column[:5] = [2.0, -2.0, 2 * 0.1609302, -2 * 0.0910500, 2 * 0.43]
    kernel = one(np.stack([column, -column], axis=1), "nf4")
    codes = np.asarray(kernel.codes[0, :, 0])
    assert kernel.codes.shape == (1, 32, 2) and kernel.codes.dtype == np.uint8
    assert codes[:3].tolist() == [15 << 4 | 0, 9 << 4 | 6, 12 << 4 | 7]
    back = np.asarray(dequantize(kernel))[0]
    np.testing.assert_allclose(back[:5, 0], 2 * NF4_TABLE[[15, 0, 9, 6, 12]], rtol=1e-5)
    assert not back[5:].any()


def test_dynamic_table_by_hand():
    """Symmetric but for 0 and 1: the lowest decade has one value, the highest 64."""
    table = dynamic_table()
    assert len(table) == 256 and table[-1] == 1 and 0 in table
    assert np.isclose(table[table > 0][0], 0.55e-6)
    assert ((table > 0.1) & (table < 1)).sum() == 64 and (table < -0.1).sum() == 64


def test_double_quantised_scales_stay_within_the_code():
    kernel_io = np.random.default_rng(0).normal(size=(640, 48)).astype("f4")
    kernel = one(kernel_io, "nf4")
    assert kernel.scales.dtype == np.uint8 and kernel.second.shape == (1, 2)  # 480 scales
    scales = np.abs(kernel_io.reshape(10, 64, 48)).max(1)
    error = np.abs(np.asarray(dequantize(kernel))[0] - kernel_io).reshape(10, 64, 48)
    half_gap = np.diff(NF4_TABLE).max() / 2
    assert (error <= (half_gap + 0.01) * scales[:, None] + 0.02).all()
    assert error.mean() < 0.1


def test_equals_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes.functional")
    torch = pytest.importorskip("torch")
    kernel_io = np.random.default_rng(1).normal(size=(192, 40)).astype("f4")
    weight = torch.tensor(kernel_io.T.copy())
    packed, state = bitsandbytes.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    expected = bitsandbytes.dequantize_4bit(packed, state).numpy().T
    kernel = one(kernel_io, "nf4")
    np.testing.assert_array_equal(np.asarray(kernel.codes)[0].T.ravel(), packed.numpy().ravel())
    np.testing.assert_allclose(np.asarray(dequantize(kernel))[0], expected, atol=1e-6)


def test_int8_rounds_to_half_a_step():
    kernel_io = np.random.default_rng(2).normal(size=(96, 10)).astype("f4")
    back = np.asarray(dequantize(one(kernel_io, "int8")))[0]
    steps = np.abs(kernel_io).max(0) / 127
    assert (np.abs(back - kernel_io) <= steps / 2 + 1e-6).all()
    assert np.abs(back - kernel_io).max() > 0


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_forward_equals_the_dequantised_model(kind):
    """Under scan and gradient: codes in the tree against full kernels of the same values."""
    params = init_params(TINY, jax.random.key(0))
    stored = quantize_base(params, kind)
    kernels = jax.tree.map(
        lambda leaf: dequantize(leaf) if hasattr(leaf, "kind") else leaf,
        stored,
        is_leaf=lambda leaf: hasattr(leaf, "kind"),
    )
    tree = jax.tree.map(
        lambda leaf: leaf + 0.02, init_lora(TINY, LoraConfig(rank=2), jax.random.key(1))
    )
    tokens, layout = jnp.arange(8)[None], Layout.plain(jnp.ones((1, 8), bool))

    @jax.jit
    def total(lora, base):
        adapter = Adapter(lora, 1.0)
        return jnp.sum(forward(TINY, base, tokens, layout, compute=Compute(), adapter=adapter) ** 2)

    mine, grads = jax.value_and_grad(total)(tree, stored)
    expected, other = jax.value_and_grad(total)(tree, kernels)
    assert float(mine) == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), grads, other)


def test_codes_are_placed_by_the_kernels_rule():
    stored = quantize_base(init_params(TINY, jax.random.key(0)), "nf4")
    placed = shardings(stored, make_mesh())["layers"]["mlp"]["up_proj"]["kernel"]
    assert placed.codes.spec == jax.P(None, "fsdp", "tensor") == placed.scales.spec


def test_never_merged_and_never_twice():
    stored = quantize_base(init_params(TINY, jax.random.key(0)), "nf4")
    assert quantization(stored) == "nf4"
    tree = init_lora(TINY, LoraConfig(rank=2), jax.random.key(1))
    with pytest.raises(UserError, match="merge an adapter into this base"):
        merge_lora(stored, Adapter(tree, 1.0))
    with pytest.raises(UserError, match="again"):
        quantize_base(stored, "int8")
    with pytest.raises(UserError, match="unknown"):
        quantize_base({}, "nf3")
