"""Schedules by hand; AdamW with clipping and decay against torch."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from selfevo_jax.errors import UserError
from selfevo_jax.learn.optimizer import optimizer, schedule


def rates(name, steps=10, warmup=0.2):
    rate = schedule(name, 1.0, steps, warmup)
    return [float(rate(step)) for step in range(steps)]


def test_schedules_by_hand():
    assert rates("constant") == pytest.approx([0.5] + [1.0] * 9)
    assert rates("linear") == pytest.approx([0.5] + [1.0] + [1 - i / 8 for i in range(8)])
    cosine = [(1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]
    assert rates("cosine") == pytest.approx([0.5] + [1.0] + cosine, abs=1e-6)
    assert rates("linear", warmup=0.0) == pytest.approx([1 - i / 10 for i in range(10)])
    assert rates("constant", warmup=0.1) == pytest.approx([1.0] * 10)


def test_steps_equal_torch_adamw():
    """Clipping by the norm of the whole tree, decay on kernels but not on norms."""
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.normal(size=(4, 3)), "scale": rng.normal(size=(3,))}
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in tree.items()}
    theirs = torch.optim.AdamW(
        [
            {"params": [leaves["kernel"]], "weight_decay": 0.1},
            {"params": [leaves["scale"]], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    mine = {name: jnp.asarray(value, jnp.float32) for name, value in tree.items()}
    optimizer_ = optimizer("adamw", weight_decay=0.1, clip=1.0)
    state = optimizer_.init(mine)
    for _ in range(5):
        grads = {name: rng.normal(size=value.shape) for name, value in tree.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        theirs.step()
        updates, state = optimizer_.update(
            {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()}, state, mine, rate=0.01
        )
        mine = optax.apply_updates(mine, updates)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(mine[name], leaf.detach().numpy(), atol=1e-5)


def test_adafactor_equals_transformers():
    """A matrix wide enough to be factored, and a vector."""
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.normal(size=(128, 130)), "scale": rng.normal(size=(5,))}
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in tree.items()}
    theirs = transformers.Adafactor(
        leaves.values(), lr=0.01, scale_parameter=False, relative_step=False
    )
    mine = {name: jnp.asarray(value, jnp.float32) for name, value in tree.items()}
    chain = optimizer("adafactor", clip=None)
    state = chain.init(mine)
    for _ in range(3):
        grads = {name: rng.normal(size=value.shape) for name, value in tree.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(grads[name])
        theirs.step()
        updates, state = chain.update(grads, state, mine, rate=0.01)
        mine = optax.apply_updates(mine, updates)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(mine[name], leaf.detach().numpy(), atol=1e-5)


def test_lion_by_hand():
    """The sign of 0.9 m + 0.1 g, with m <- 0.99 m + 0.01 g; decay joins the step."""
    mine = {"kernel": jnp.array([1.0, -2.0, 3.0])}
    chain = optimizer("lion", weight_decay=0.5, clip=None)
    state = chain.init(mine)
    value, moment = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for grad in (np.array([1.0, -1.0, 0.5]), np.array([-0.01, 3.0, 0.5])):
        updates, state = chain.update({"kernel": jnp.asarray(grad)}, state, mine, rate=0.1)
        mine = optax.apply_updates(mine, updates)
        value = value - 0.1 * (np.sign(0.9 * moment + 0.1 * grad) + 0.5 * value)
        moment = 0.99 * moment + 0.01 * grad
    np.testing.assert_allclose(mine["kernel"], value, rtol=1e-6)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match="adafactor"):
        optimizer("adam")
