"""Writing to the cache, where XLA has one way for a single token and one for several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.models.cache import stored


@pytest.mark.parametrize("rows", [1, 4])
def test_a_token_is_written_where_it_belongs(rows):
    """Rows are at different places, and one past the end is dropped."""
    heads, width, slots = 2, 8, 16
    drawn = jax.random.split(jax.random.key(rows), 4)
    keys = jax.random.normal(drawn[0], (rows, heads, width, slots), jnp.bfloat16)
    values = jax.random.normal(drawn[1], (rows, heads, slots, width), jnp.bfloat16)
    new_key, new_value = (jax.random.normal(key, (rows, 1, heads, width)) for key in drawn[2:])
    slots_bt = np.array([[3], [0], [15], [slots]], np.int32)[:rows]
    found = jax.jit(stored)(keys, values, slots_bt, new_key, new_value)
    wanted = np.array(keys), np.array(values)
    for row, (slot,) in enumerate(slots_bt):
        if slot < slots:
            wanted[0][row, :, :, slot] = new_key[row, 0].astype(jnp.bfloat16)
            wanted[1][row, :, slot] = new_value[row, 0].astype(jnp.bfloat16)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
