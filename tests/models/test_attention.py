"""Who sees whom: packed rows and shared prompts give what separate sequences give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from selfevo_jax.models.attention import NO_WINDOW, Blocks, Layout, attend, row_mask, visible
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


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_listed_blocks_equal_the_full_mask(softcap):
    """Packed examples with branches and padding: values and gradients, blocks against all."""
    rng = np.random.default_rng(0)
    sizes = [(30, 20, 35), (50, 10, 12), (5, 60, 3)]  # prompt, two completions
    columns = [[], [], []]
    for number, (prompt, *completions) in enumerate(sizes):
        for branch, size in enumerate((prompt, *completions)):
            start = prompt if branch else 0
            columns[0] += range(start, start + size)
            columns[1] += [number + 1] * size
            columns[2] += [branch] * size
    arrays = [jnp.array([column + [0] * 75, [0] * 75 + column]) for column in columns]
    full, blocks = Layout(*arrays), Layout(*arrays, reach=4)
    assert isinstance(row_mask(blocks, NO_WINDOW), Blocks)
    assert row_mask(full, NO_WINDOW).shape == (2, 300, 300)
    shapes = [(2, 300, 4, 8), (2, 2, 300, 8), (2, 2, 300, 8)]
    tensors = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    used = (full.segments_bt > 0)[:, :, None, None]

    def total(layout, *qkv):
        mixed = attend(*qkv, row_mask(layout, 40), scale=0.5, softcap=softcap)
        return jnp.sum(jnp.where(used, mixed, 0) ** 2)

    expected = jax.value_and_grad(total, (1, 2, 3))(full, *tensors)
    mine = jax.value_and_grad(total, (1, 2, 3))(blocks, *tensors)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), mine, expected
    )


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_equal_torch(softcap):
    """The backward pass is written by hand; torch's autograd says what it must be."""
    rng = np.random.default_rng(1)
    query, key, value = (
        rng.normal(size=size).astype("f4") for size in ((2, 6, 4, 8), (2, 2, 6, 8), (2, 2, 6, 8))
    )
    mask = np.tril(np.ones((6, 6), bool))[None].repeat(2, 0)

    def mine(*qkv):
        return jnp.sum(attend(*qkv, jnp.array(mask), scale=0.5, softcap=softcap) ** 3)

    leaves = [torch.tensor(x, requires_grad=True) for x in (query, key, value)]
    q, k, v = leaves[0].transpose(1, 2), *(x.repeat_interleave(2, 1) for x in leaves[1:])
    scores = 0.5 * q @ k.transpose(2, 3)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores.masked_fill(~torch.tensor(mask)[:, None], -torch.inf), -1)
    (weights @ v).pow(3).sum().backward()
    for grad, leaf in zip(jax.grad(mine, (0, 1, 2))(query, key, value), leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad.numpy(), atol=1e-4, rtol=1e-4)
