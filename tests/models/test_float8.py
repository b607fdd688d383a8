"""8-bit floats: codes and products against numpy and ml_dtypes, and what a card is given."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from selfevo_jax.models.attention import Layout
from selfevo_jax.models.config import Compute
from selfevo_jax.models.float8 import E4M3, E5M2, apply_float8, rounded, to_float8
from selfevo_jax.models.llama import forward, init_params, logits
from selfevo_jax.models.presets import preset
from selfevo_jax.models.quantize import dequantize, quantize_base
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings
from selfevo_jax.text.tokenizer import load_tokenizer

CASTS = {E4M3: (ml_dtypes.float8_e4m3fn, 448), E5M2: (ml_dtypes.float8_e5m2, 57344)}
IN, OUT = 48, 32  # and rows [2, 5]


def by_numpy(x, dtype):
    """(values of the codes, scales), from the published range and ml_dtypes' rounding alone."""
    cast, top = CASTS[dtype]
    scales = np.abs(x).max(-1, keepdims=True).astype("f4") / np.float32(top)
    return (x.astype("f4") / scales).astype(cast).astype("f8"), scales.astype("f8")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def test_codes_by_hand():
    """448 is e4m3's largest value; its steps are 16 from 128 to 256 and 2^-9 below 2^-6."""
    codes, scales = rounded(jnp.array([[-2.0, 1.0, 1.03, 1.05, 1e-5, 0.0]]), E4M3)
    assert codes.dtype == jnp.float8_e4m3fn and scales.shape == (1, 1)
    assert codes[0].tolist() == [-448, 224, 224, 240, 2**-9, 0]
    assert scales[0, 0] == np.float32(2 / 448)


@pytest.mark.parametrize("dtype", CASTS)
def test_every_row_has_the_whole_range_and_none_leaves_it(dtype):
    """Largest values whose quotient rounds above the range, rows of any size, zeros."""
    rows = draw(400, 24) * 10.0 ** np.linspace(-25, 37, 400)[:, None].astype("f4")
    codes, scales = jax.jit(rounded, static_argnums=1)(jnp.asarray(rows), dtype)
    expected = by_numpy(rows, dtype)
    np.testing.assert_array_equal(np.asarray(codes).astype("f8"), expected[0])
    np.testing.assert_allclose(np.asarray(scales), expected[1], rtol=2e-7)
    assert (np.abs(expected[0]).max(-1) == CASTS[dtype][1]).all()
    none, scales = rounded(jnp.zeros((3, 8)), dtype)
    assert not np.asarray(none).astype("f4").any() and (np.asarray(scales) > 0).all()
    tiny, _ = rounded(jnp.full((1, 8), 1e-37), dtype)
    assert np.isfinite(np.asarray(tiny).astype("f4")).all()


def test_a_row_with_an_infinity_does_not_reach_the_others():
    rows = draw(3, IN)
    rows[1, 4] = np.inf
    kernel = to_float8(jnp.asarray(draw(IN, OUT, seed=1)))
    found = np.asarray(apply_float8(jnp.asarray(rows), kernel))
    alone = np.asarray(apply_float8(jnp.asarray(rows[[0, 2]]), kernel))
    np.testing.assert_array_equal(found[[0, 2]], alone)
    assert np.isfinite(alone).all()


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_products_and_gradients_are_the_formulas(dtype, error):
    """Rows of very different sizes, a row and an output of zeros."""
    x_bti, kernel_io, slope_bto = draw(2, 5, IN), draw(IN, OUT, seed=1), draw(2, 5, OUT, seed=2)
    x_bti, slope_bto = (
        np.asarray(jnp.asarray(x * [[[1], [1e3], [1e-6], [1], [30]]], dtype)).astype("f4")
        for x in (x_bti, slope_bto)
    )
    kernel_io[:, 3] *= 1e4
    rows, row_scales = by_numpy(x_bti, E4M3)
    weights, out_scales = by_numpy(kernel_io.T, E4M3)
    expected = rows @ weights.T * row_scales * out_scales[:, 0]
    back, back_scales = by_numpy(slope_bto * out_scales[:, 0].astype("f4"), E5M2)
    expected_slope = back @ weights * back_scales

    kernel = to_float8(jnp.asarray(kernel_io))
    y_bto, pull = jax.vjp(lambda x: apply_float8(x, kernel), jnp.asarray(x_bti, dtype))
    (found,) = pull(jnp.asarray(slope_bto, dtype))
    assert y_bto.dtype == found.dtype == dtype
    for ours, theirs in ((y_bto, expected), (found, expected_slope)):
        largest = np.abs(theirs).max(-1, keepdims=True)
        assert (np.abs(np.asarray(ours, "f8") - theirs) <= error * largest).all()
    np.testing.assert_allclose(
        np.asarray(dequantize(kernel)), (weights * out_scales).T.astype("f4"), rtol=1e-6
    )


def test_zeros_stay_zeros_and_take_nothing_with_them():
    kernel_io, x_bti = draw(IN, OUT), draw(1, 2, IN)
    kernel_io[:, 5], x_bti[0, 1] = 0, 0
    kernel = to_float8(jnp.asarray(kernel_io))
    y_bto, pull = jax.vjp(lambda x: apply_float8(x, kernel), jnp.asarray(x_bti))
    assert not np.asarray(y_bto[0, 1]).any() and not np.asarray(y_bto[..., 5]).any()
    assert np.asarray(y_bto[0, 0, :5]).all()
    (found,) = pull(jnp.zeros_like(y_bto).at[0, 0, 5].set(1.0))
    assert not np.asarray(found).any()


def test_the_error_is_that_of_three_bits_of_mantissa():
    """A value is off by up to 2^-4 of itself, about evenly: 2.6 % for each side, 3.7 % for both."""
    x_bti, kernel_io = draw(1, 64, 512), draw(512, 256, seed=1)
    exact = x_bti.astype("f8") @ kernel_io
    found = np.asarray(apply_float8(jnp.asarray(x_bti), to_float8(jnp.asarray(kernel_io))))
    assert 0.03 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.04


def test_cuda_is_given_products_of_two_float8_arrays():
    """Types that cuBLASLt multiplies, one of them e4m3, and no product of anything wider."""
    kernel = to_float8(jnp.asarray(draw(IN, OUT)))

    def total(x):
        return jnp.sum(apply_float8(x, kernel).astype(jnp.float32) ** 2)

    x_bti = jnp.ones((2, 5, IN), jnp.bfloat16)
    lowered = jax.jit(jax.grad(total)).trace(x_bti).lower(lowering_platforms=("cuda",))
    products = re.findall(r"dot_general.*?contracting_dims = (.*?),.* : (.*)", lowered.as_text())
    assert products == [
        ("[2] x [1]",
         "(tensor<2x5x48xf8E4M3FN>, tensor<32x48xf8E4M3FN>) -> tensor<2x5x32xbf16>"),
        ("[2] x [0]",
         "(tensor<2x5x32xf8E5M2>, tensor<32x48xf8E4M3FN>) -> tensor<2x5x48xbf16>"),
    ]  # fmt: skip


def test_the_base_takes_half_of_bfloat16_and_is_placed_by_its_channels():
    params = init_params(preset("tiny"), jax.random.key(0), jnp.bfloat16)
    stored = quantize_base(params, "fp8")
    whole, few = params["layers"]["mlp"], stored["layers"]["mlp"]
    for name in ("up_proj", "down_proj"):
        kernel, small = whole[name]["kernel"], few[name]["kernel"]
        assert small.codes_oi.nbytes * 2 == kernel.nbytes
        assert small.scales_o1.nbytes == 4 * kernel.shape[0] * kernel.shape[2]
    placed = shardings(stored, make_mesh())["layers"]
    for leaf, axes in (
        (placed["mlp"]["up_proj"], ("tensor", "fsdp")),
        (placed["attn"]["o_proj"], ("fsdp", "tensor")),
    ):
        assert leaf["kernel"].codes_oi.spec == jax.P(None, *axes)
        assert leaf["kernel"].scales_o1.spec[1] == axes[0]


@pytest.fixture(scope="module")
def texts(smollm2, shared_data):
    """(tokens, mask) [8, 96] of GSM8K's questions and answers."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    encode = load_tokenizer(smollm2.path).encode
    rows = [encode(" ".join(map(str, json.loads(line).values())))[:96] for line in lines]
    tokens_bt, mask_bt = np.zeros((8, 96), np.int32), np.zeros((8, 96), bool)
    for row, ids in enumerate(rows):
        tokens_bt[row, : len(ids)], mask_bt[row, : len(ids)] = ids, True
    return tokens_bt, mask_bt


@pytest.mark.parametrize(
    ("kind", "apart", "same", "worse"),
    [("fp8", 0.035, 0.90, 0.033), ("nf4", 0.274, 0.71, 0.296), ("int8", 0.0035, 0.963, 0.0057)],
)
def test_how_close_the_real_smollm2_stays_to_itself(smollm2, texts, kind, apart, same, worse):
    """The figures of docs/gpus.md: KL from float32 in nats a token, share of equal first choices,
    and by how many nats a token of the texts is less likely."""
    tokens_bt, mask_bt = texts
    params = smollm2.load()

    @jax.jit
    def run(params):
        layout = Layout.plain(jnp.asarray(mask_bt))
        hidden = forward(smollm2.config, params, tokens_bt, layout, compute=Compute())
        return jax.nn.log_softmax(logits(smollm2.config, params, hidden))

    exact, found = (np.asarray(run(tree)) for tree in (params, quantize_base(params, kind)))
    divergence_bt = (np.exp(exact) * (exact - found)).sum(-1)
    assert divergence_bt[mask_bt].mean() == pytest.approx(apart, rel=0.15)
    equal_bt = exact.argmax(-1) == found.argmax(-1)
    assert equal_bt[mask_bt].mean() == pytest.approx(same, abs=0.015)
    lost = np.take_along_axis(exact - found, np.roll(tokens_bt, -1, 1)[..., None], 2)[..., 0]
    assert lost[:, :-1][mask_bt[:, 1:]].mean() == pytest.approx(worse, rel=0.15)
