"""The decoder against `transformers`, family by family, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.models import decode_attention
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.cache import init_cache
from selfevo_jax.models.config import Compute
from selfevo_jax.models.llama import (
    abstract_params,
    forward,
    forward_cached,
    logits,
    unstack_layers,
)

TOKENS_BT = np.random.default_rng(0).integers(3, 300, (2, 40))
LAYOUT = Layout.plain(jnp.ones((2, 40), bool))


def part(layout: Layout, start: int, stop: int) -> Layout:
    return jax.tree.map(lambda leaf: leaf[:, start:stop], layout)


def ours(family, tokens_bt=TOKENS_BT, layout=LAYOUT, **kwargs):
    hidden_btd = forward(family.config, family.params, jnp.asarray(tokens_bt), layout, **kwargs)
    return np.asarray(logits(family.config, family.params, hidden_btd))


def test_logits_equal_transformers(family):
    want_btv = family.torch_logits(TOKENS_BT)
    assert np.abs(want_btv).max() > 2  # the comparison is not one of near-zeros
    np.testing.assert_allclose(ours(family), want_btv, atol=1e-4)


def test_left_padding_changes_nothing(family):
    valid_bt = np.ones((2, 40), bool)
    valid_bt[1, :13] = False
    got_btv = ours(family, layout=Layout.plain(jnp.asarray(valid_bt)))
    alone_btv = family.torch_logits(TOKENS_BT[1:, 13:])
    np.testing.assert_allclose(got_btv[1:, 13:], alone_btv, atol=1e-4)


@pytest.mark.parametrize("on_a_tpu", [False, True], ids=["", "as on a TPU"])
def test_cached_decoding_equals_one_pass(family, on_a_tpu, monkeypatch):
    """The head's width of `llama_linear_rope` is not one that caches have."""
    if on_a_tpu:
        interpreted = functools.partial(decode_attention.attend, interpret=True)
        monkeypatch.setattr(decode_attention, "serves", lambda tokens: tokens == 1)
        monkeypatch.setattr(decode_attention, "attend", interpreted)
    config = family.config
    params = unstack_layers(family.params)
    tokens_bt = jnp.asarray(TOKENS_BT)
    slots_bt = jnp.broadcast_to(jnp.arange(40), (2, 40))
    cache = init_cache(config, rows=2, slots=64)
    step = jax.jit(
        lambda tokens, layout, cache, slots: forward_cached(
            config, params, tokens, layout, cache, slots
        )
    )
    pieces = []
    for start, stop in [(0, 30), *((i, i + 1) for i in range(30, 40))]:
        hidden, cache = step(
            tokens_bt[:, start:stop], part(LAYOUT, start, stop), cache, slots_bt[:, start:stop]
        )
        pieces.append(hidden)
    got_btv = logits(config, params, jnp.concatenate(pieces, axis=1))
    np.testing.assert_allclose(got_btv, family.torch_logits(TOKENS_BT), atol=1e-4)


def test_rematerialisation_keeps_values_and_gradients(family):
    def loss(params, remat):
        hidden_btd = forward(
            family.config, params, jnp.asarray(TOKENS_BT), LAYOUT, compute=Compute(remat=remat)
        )
        return jnp.mean(logits(family.config, params, hidden_btd) ** 2)

    plain = jax.value_and_grad(loss)(family.params, "none")
    for remat in ("dots", "full"):
        again = jax.value_and_grad(loss)(family.params, remat)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), plain, again
        )


def test_bfloat16_stays_near_float32(family):
    wide, narrow = ours(family), ours(family, compute=Compute(dtype=jnp.bfloat16))
    assert narrow.dtype == np.float32
    assert 0 < np.abs(wide - narrow).mean() < 0.1 * np.abs(wide).mean()


def test_parameter_shapes_are_known_without_allocating(family):
    shapes = jax.tree.map(lambda leaf: leaf.shape, family.params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, abstract_params(family.config))
