"""Who sees whom: packed rows and shared prompts give what separate sequences give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.models.attention import Layout, visible
from selfevo_jax.models.llama import forward, init_params
from selfevo_jax.models.presets import preset

CONFIG = preset("tiny")


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf * 5, init_params(CONFIG, jax.random.key(0)))


def row(*triples) -> Layout:
    """A one-row layout from (segment, branch, position) triples."""
    segments, branches, positions = (
        jnp.array([list(column)]) for column in zip(*triples, strict=True)
    )
    return Layout(positions, segments, branches)


def alone(params, tokens):
    layout = Layout.plain(jnp.ones((1, len(tokens)), bool))
    return forward(CONFIG, params, jnp.array([tokens]), layout)[0]


def test_a_small_mask_by_hand():
    layout = row((1, 0, 0), (1, 1, 1), (1, 2, 1), (2, 0, 0), (0, 0, 0))
    want = [
        [1, 0, 0, 0, 0],  # prompt sees itself
        [1, 1, 0, 0, 0],  # first completion sees the prompt, not the second completion
        [1, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],  # another segment
        [0, 0, 0, 0, 0],  # padding sees nothing and is not seen
    ]
    np.testing.assert_array_equal(visible(layout, layout)[0], np.array(want, bool))


def test_a_window_counts_the_query_itself():
    layout = Layout.plain(jnp.ones((1, 4), bool))
    want = np.tril(np.ones((4, 4), bool)) & ~np.tril(np.ones((4, 4), bool), -2)
    np.testing.assert_array_equal(visible(layout, layout, window=2)[0], want)


def test_two_completions_share_one_prompt(params):
    prompt, first, second = [5, 9, 2, 7], [11, 12, 13], [21, 22]
    places = [(1, 0, i) for i in range(4)] + [(1, 1, 4 + i) for i in range(3)]
    places += [(1, 2, 4 + i) for i in range(2)]
    packed_td = forward(CONFIG, params, jnp.array([prompt + first + second]), row(*places))[0]
    np.testing.assert_allclose(packed_td[:7], alone(params, prompt + first), atol=2e-5)
    np.testing.assert_allclose(packed_td[7:], alone(params, prompt + second)[4:], atol=2e-5)


def test_packed_segments_do_not_leak(params):
    first, second = [5, 9, 2, 7], [11, 12, 13]
    places = [(1, 0, i) for i in range(4)] + [(2, 0, i) for i in range(3)]
    packed_td = forward(CONFIG, params, jnp.array([first + second]), row(*places))[0]
    np.testing.assert_allclose(packed_td[:4], alone(params, first), atol=2e-5)
    np.testing.assert_allclose(packed_td[4:], alone(params, second), atol=2e-5)
