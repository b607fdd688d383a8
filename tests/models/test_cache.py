"""Writing to the cache: a TPU's way gives what the others' does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.models import cache


@pytest.mark.parametrize("rows", [1, 4])
def test_a_token_is_written_alike_by_scattering_and_by_selecting(rows, monkeypatch):
    """Rows are at different places, and one past the end is dropped."""
    heads, width, slots = 2, 8, 16
    keys = jax.random.split(jax.random.key(rows), 4)
    held = (
        jax.random.normal(keys[0], (rows, heads, width, slots), jnp.bfloat16),
        jax.random.normal(keys[1], (rows, heads, slots, width), jnp.bfloat16),
    )
    new = [jax.random.normal(key, (rows, 1, heads, width)) for key in keys[2:]]
    slots_bt = np.array([[3], [0], [15], [slots]], np.int32)[:rows]
    found = {}
    for name in ("cpu", "tpu"):
        monkeypatch.setattr(cache, "platform", lambda name=name: name)
        found[name] = jax.jit(cache.stored)(*held, slots_bt, *new)
    for one, other in zip(found["cpu"], found["tpu"], strict=True):
        np.testing.assert_array_equal(one, other)
    stored_keys, _ = found["tpu"]
    np.testing.assert_array_equal(stored_keys[0, :, :, 3], new[0][0, 0].astype(jnp.bfloat16))
    changed = np.asarray(stored_keys != held[0]).any(axis=(1, 2)).sum(axis=-1)
    assert changed.tolist() == [1, 1, 1, 0][:rows]
