"""The kernel for one new token a row, interpreted, against writing and attending one by one."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.models.cache import attend_cached, stored
from selfevo_jax.models.decode_attention import attend


@dataclass(frozen=True)
class Shape:
    """Rows, key-value heads, query heads for each, head width, slots; what the token sees."""

    b: int
    k: int
    g: int
    h: int
    s: int
    window: int = 2**30
    softcap: float | None = None
    dtype: jnp.dtype = jnp.float32


SHAPES = {
    "grouped heads, wide": Shape(4, 2, 4, 128, 256),
    "as many slots as a head is wide": Shape(3, 2, 1, 128, 128),
    "narrow heads, a half block at the end": Shape(5, 3, 1, 8, 192),
    "window, cap, a cut block": Shape(3, 2, 2, 16, 700, window=130, softcap=5.0),
    "wide, a cut block": Shape(3, 1, 2, 128, 600),
    "more rows than a register has numbers": Shape(130, 1, 1, 8, 128),
    "a short cache": Shape(3, 2, 2, 16, 40),
    "bfloat16": Shape(4, 2, 4, 64, 256, dtype=jnp.bfloat16),
    "many heads, small blocks": Shape(2, 20, 1, 128, 384),
}


def drawn(shape: Shape):
    """Queries, what is kept, slots and new keys and values, mask; rows at all kinds of places."""
    rng = np.random.default_rng(shape.s)

    def normal(*size):
        return jnp.asarray(rng.normal(size=size), shape.dtype)

    b, k, g, h, s = shape.b, shape.k, shape.g, shape.h, shape.s
    place_b = rng.integers(0, s, b)
    place_b[:2] = s - 1, 0
    slot_b = place_b.copy()
    slot_b[2:3] = s  # dropped: nothing is written, old tokens are seen
    distance_bs = place_b[:, None] - np.arange(s)
    mask_b1s = ((distance_bs >= 0) & (distance_bs < shape.window))[:, None]
    kept = normal(b, k, h, s), normal(b, k, s, h)
    new = normal(b, 1, k, h), normal(b, 1, k, h)
    return normal(b, 1, k * g, h), kept, jnp.asarray(slot_b[:, None]), *new, jnp.asarray(mask_b1s)


def run(shape: Shape, query, kept, slots, key, value, mask):
    found = attend(
        query, kept, slots, key, value, mask, scale=0.3, softcap=shape.softcap, interpret=True
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float32), found)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_writing_and_attending(shape):
    query, kept, slots, key, value, mask = drawn(shape)
    written = stored(*kept, slots, key, value)
    wanted = attend_cached(query, *written, mask, scale=0.3, softcap=shape.softcap)
    mixed, found = run(shape, query, kept, slots, key, value, mask)
    tolerance = 2e-2 if shape.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(mixed, np.asarray(wanted, np.float32), atol=tolerance)
    for ours, theirs in zip(found, written, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs, np.float32))


@pytest.mark.parametrize("width", [16, 128])
def test_blocks_that_are_not_seen_are_not_read(width):
    """Before the window and behind the token lies what would spoil every sum."""
    shape = Shape(3, 2, 1, width, 2048, window=600)
    query, kept, _, key, value, _ = drawn(shape)
    place_b = np.array([700, 1500, 1023])
    distance_bs = place_b[:, None] - np.arange(shape.s)
    mask = jnp.asarray(((distance_bs >= 0) & (distance_bs < shape.window))[:, None])
    inputs = query, kept, jnp.asarray(place_b[:, None]), key, value, mask
    clean, _ = run(shape, *inputs)
    seen_b, blocks_s = [(101, 700), (901, 1500), (424, 1023)], np.arange(shape.s) // 512
    unread_bs = np.array(
        [(blocks_s < first // 512) | (blocks_s > last // 512) for first, last in seen_b]
    )
    assert unread_bs.sum(axis=1).tolist() == [1024, 1024, 1024]
    spoilt = (
        jnp.where(unread_bs[:, None, None], jnp.nan, kept[0]),
        jnp.where(unread_bs[:, None, :, None], jnp.nan, kept[1]),
    )
    mixed, _ = run(shape, query, spoilt, *inputs[2:])
    np.testing.assert_array_equal(mixed, clean)


def test_a_row_does_not_depend_on_its_neighbours():
    shape = Shape(4, 2, 2, 16, 1024)
    query, kept, slots, key, value, mask = drawn(shape)
    mixed, _ = run(shape, query, kept, slots, key, value, mask)
    turned = jax.tree.map(lambda x: x[::-1], (query, kept, slots, key, value, mask))
    again, _ = run(shape, *turned)
    np.testing.assert_array_equal(again[::-1], mixed)
    alone = jax.tree.map(lambda x: x[1:2], (query, kept, slots, key, value, mask))
    np.testing.assert_array_equal(run(shape, *alone)[0], mixed[1:2])
