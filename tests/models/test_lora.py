"""LoRA as a second tree: off at the start, mergeable, differentiable, dropped out repeatably."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.llama import forward, init_params
from selfevo_jax.models.lora import (
    LoraConfig,
    adapter,
    init_lora,
    merge_lora,
    rescaled,
    target_shapes,
)
from selfevo_jax.models.presets import preset

CONFIG = preset("tiny")
TOKENS_BT = jnp.array([[5, 9, 2, 7, 11, 3]])
LAYOUT = Layout.plain(jnp.ones((1, 6), bool))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf * 5, init_params(CONFIG, jax.random.key(0)))


def noisy(tree):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return structure.unflatten(
        [
            leaf + 0.1 * jax.random.normal(k, leaf.shape)
            for leaf, k in zip(leaves, keys, strict=True)
        ]
    )


def hidden(params, **kwargs):
    return forward(CONFIG, params, TOKENS_BT, LAYOUT, **kwargs)


def test_a_fresh_adapter_changes_no_bit(params):
    lora = LoraConfig(rank=4)
    fresh = adapter(init_lora(CONFIG, lora, jax.random.key(1)), lora)
    np.testing.assert_array_equal(hidden(params), hidden(params, adapter=fresh))


@pytest.mark.parametrize("rslora", [False, True])
def test_merging_equals_applying(params, rslora):
    lora = LoraConfig(rank=4, alpha=8, rslora=rslora)
    assert lora.scaling == (4.0 if rslora else 2.0)
    tuned = adapter(noisy(init_lora(CONFIG, lora, jax.random.key(1))), lora)
    applied = hidden(params, adapter=tuned)
    assert np.abs(applied - hidden(params)).max() > 0.1
    np.testing.assert_allclose(applied, hidden(merge_lora(params, tuned)), atol=1e-4)


def test_gradients_reach_every_adapter_leaf(params):
    lora = LoraConfig(rank=4)
    tree = noisy(init_lora(CONFIG, lora, jax.random.key(1)))
    grads = jax.grad(lambda t: jnp.sum(hidden(params, adapter=adapter(t, lora)) ** 2))(tree)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))


def test_dropout_is_a_function_of_the_key(params):
    lora = LoraConfig(rank=4, dropout=0.5)
    train = adapter(noisy(init_lora(CONFIG, lora, jax.random.key(1))), lora, train=True)
    first = hidden(params, adapter=train, dropout_key=jax.random.key(3))
    again = hidden(params, adapter=train, dropout_key=jax.random.key(3))
    other = hidden(params, adapter=train, dropout_key=jax.random.key(4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    still = adapter(train.params, lora)  # not training: dropout is off whatever the key
    np.testing.assert_array_equal(
        hidden(params, adapter=still), hidden(params, adapter=still, dropout_key=jax.random.key(3))
    )


def test_targets_choose_modules_by_path():
    only = target_shapes(CONFIG, LoraConfig(targets=r"layers/attn/(q|v)_proj"))
    assert sorted(path[-1] for path in only) == ["q_proj", "v_proj"]
    with pytest.raises(UserError, match="layers/mlp/up_proj"):
        target_shapes(CONFIG, LoraConfig(targets="nothing"))


def test_a_tree_of_another_scaling_stays_the_same_policy(params):
    """A merged adapter has scaling 1; the next training may have another."""
    merged, wanted = LoraConfig(rank=4, alpha=4), LoraConfig(rank=4, alpha=32)
    tree = noisy(init_lora(CONFIG, merged, jax.random.key(1)))
    before = hidden(params, adapter=adapter(tree, merged))
    after = hidden(params, adapter=adapter(rescaled(tree, merged, wanted), wanted))
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert rescaled(tree, merged, merged) is tree and rescaled(None, None, wanted) is None
