"""Schedules by hand; AdamW with clipping and decay against torch."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from selfevo_jax.learn.optimizer import adamw, schedule


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
    optimizer = adamw(schedule("constant", 0.01, 5, 0.0), weight_decay=0.1, clip=1.0)
    state = optimizer.init(mine)
    for _ in range(5):
        grads = {name: rng.normal(size=value.shape) for name, value in tree.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(grads[name])
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        theirs.step()
        updates, state = optimizer.update(
            {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()}, state, mine
        )
        mine = optax.apply_updates(mine, updates)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(mine[name], leaf.detach().numpy(), atol=1e-5)
