"""The torch losses and optimisers against those of JAX and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from selfevo_jax.learn import losses as in_jax
from selfevo_jax.learn.losses import LOSSES, Objective
from selfevo_jax.learn.optimizer import optimizer, schedule
from selfevo_jax.torch_backend import losses as in_torch
from selfevo_jax.torch_backend.optimizer import Optimizer

CASES = {name: Objective(name) for name in LOSSES} | {
    "smoothed": Objective("dpo", label_smoothing=0.2, beta=0.5),
    "robust with flips": Objective("robust", label_smoothing=0.1),
    "margins": Objective("simpo", margin=0.5, beta=2.0),
    "a margin to rank by": Objective("ranking", margin=1.0),
    "an anchor": Objective("inpo", ratio=0.3),
    "weights of the sides": Objective("kto", desirable=0.7, undesirable=1.3),
    "no reference": Objective("dpo", reference_free=True),
    "an SFT term": Objective("hinge", sft_weight=0.5),
    "a mixture": Objective("dpo+0.5*ipo"),
}


def some_sequences() -> list[np.ndarray]:
    """logps, tokens, reference, anchor of 2 x 3 slots of two completions, one slot empty."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 20, (2, 3, 2)).astype(np.float32)
    tokens[1, 2] = 0
    sums = [-tokens * rng.uniform(0.05, 3, tokens.shape).astype(np.float32) for _ in range(3)]
    return [sums[0], tokens, sums[1], sums[2]]


def total(terms):
    return sum(term.weight * term.numerator / term.denominator for term in terms)


@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_metrics_are_those_of_jax(name):
    objective, arrays = CASES[name], some_sequences()

    def of_jax(logps):
        sequences = in_jax.Sequences(logps, *map(jnp.asarray, arrays[1:]))
        metrics = in_jax.metric_sums(objective, sequences)
        return total(in_jax.loss_terms(objective, sequences, 0.25)), metrics

    (wanted, metrics), slope = jax.value_and_grad(of_jax, has_aux=True)(jnp.asarray(arrays[0]))
    tensors = [torch.tensor(array) for array in arrays]
    tensors[0].requires_grad_(True)
    sequences = in_torch.Sequences(*tensors)
    found = total(in_torch.loss_terms(objective, sequences, 0.25))
    found.backward()
    np.testing.assert_allclose(found.item(), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tensors[0].grad, slope, rtol=1e-5, atol=1e-6)
    mine = in_torch.metric_sums(objective, sequences)
    assert mine.keys() == metrics.keys()
    for key, value in metrics.items():
        np.testing.assert_allclose(mine[key].detach(), value, rtol=2e-6, err_msg=key)


@pytest.mark.parametrize("name", ["adamw", "lion"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_optimisers_are_those_of_optax(name, clip):
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.normal(size=(4, 3)), "scale": rng.normal(size=3)}
    tree = {key: value.astype(np.float32) for key, value in tree.items()}
    rate = schedule("cosine", 0.1, 6, 0.3)
    chain = optimizer(name, weight_decay=0.1, clip=clip)
    mine = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in tree.items()}
    own = Optimizer(name, list(mine.values()), [True, False], weight_decay=0.1, clip=clip)
    state = chain.init(tree)
    for step in range(6):
        size = 10.0 ** (step - 3)  # below and above the clip
        grads = {key: (size * rng.normal(size=v.shape)).astype("f") for key, v in tree.items()}
        updates, state = chain.update(grads, state, tree, rate=rate(step))
        tree = optax.apply_updates(tree, updates)
        for key, parameter in mine.items():
            parameter.grad = torch.tensor(grads[key])
        own.lr = float(rate(step))
        np.testing.assert_allclose(own.update(), optax.tree.norm(grads), rtol=1e-6)
        for key, value in tree.items():
            np.testing.assert_allclose(mine[key].detach(), value, rtol=1e-5, atol=1e-6)
