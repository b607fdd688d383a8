"""Merged adapters against PEFT's `add_weighted_adapter` on a tiny torch model."""

import jax
import numpy as np
import peft
import pytest
import torch
from flax.traverse_util import flatten_dict

from selfevo_jax.errors import UserError
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.models.merge import Part, dropout_masks, merge_adapters

WEIGHTS, SCALES = (1.0, 0.5, -0.7), (8.0, 16.0, 4.0)
IN, OUT, LAYERS, RANK = 6, 5, 2, 4


class Stack(torch.nn.Module):
    """Two layers, each with a `q_proj`."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            [torch.nn.ModuleDict({"q_proj": torch.nn.Linear(IN, OUT)}) for _ in range(LAYERS)]
        )


def part(number, rank=RANK, targets="layers/attn/q_proj"):
    rng = np.random.default_rng(number)
    a, b = rng.normal(size=(LAYERS, IN, rank)), rng.normal(size=(LAYERS, rank, OUT))
    tree = {"layers": {"attn": {"q_proj": {"a": a.astype("f4"), "b": b.astype("f4")}}}}
    lora = LoraConfig(rank=rank, alpha=SCALES[number], targets=targets)
    return Part(tree, lora, WEIGHTS[number], f"adapter{number}")


def by_peft(parts, method, density):
    """(a [l, in, r], b [l, r, out], scaling) of PEFT's merge."""
    model = None
    for index, one in enumerate(parts):
        config = peft.LoraConfig(r=RANK, lora_alpha=one.lora.alpha, target_modules=["q_proj"])
        if model is None:
            model = peft.PeftModel(Stack(), config, adapter_name="0")
        else:
            model.add_adapter(str(index), config)
        pair = one.params["layers"]["attn"]["q_proj"]
        for layer, modules in enumerate(model.base_model.model.layers):
            modules["q_proj"].lora_A[str(index)].weight.data = torch.tensor(pair["a"][layer].T)
            modules["q_proj"].lora_B[str(index)].weight.data = torch.tensor(pair["b"][layer].T)
    names = [str(index) for index in range(len(parts))]
    weights = [one.weight for one in parts]
    model.add_weighted_adapter(names, weights, "all", combination_type=method, density=density)
    merged = [modules["q_proj"] for modules in model.base_model.model.layers]
    return (
        np.stack([m.lora_A["all"].weight.detach().numpy().T for m in merged]),
        np.stack([m.lora_B["all"].weight.detach().numpy().T for m in merged]),
        merged[0].scaling["all"],
    )


@pytest.mark.parametrize("method", ["cat", "linear", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.2, 0.6])
def test_equals_peft(monkeypatch, method, density):
    """PEFT draws DARE's masks with torch; it is handed ours, layer by layer, a before b."""
    parts = [part(number) for number in range(3)]
    if method.startswith("dare"):
        key = jax.random.key(7)
        a, b = (
            np.asarray(dropout_masks(jax.random.fold_in(key, i), 3, (LAYERS, *shape), density))
            for i, shape in enumerate([(IN, RANK), (RANK, OUT)])
        )
        masks = iter(
            [side[p, layer].T for layer in range(LAYERS) for side in (a, b) for p in range(3)]
        )
        monkeypatch.setattr(torch, "bernoulli", lambda _: torch.tensor(next(masks)).float())
    tree, lora, _ = merge_adapters(parts, method, density=density, seed=7)
    a, b, scaling = by_peft(parts, method, density)
    mine = tree["layers"]["attn"]["q_proj"]
    np.testing.assert_allclose(mine["a"], a, atol=1e-5)
    np.testing.assert_allclose(mine["b"], b, atol=1e-5)
    assert lora.scaling == scaling == 1


def test_cat_is_the_sum_of_products_at_any_ranks():
    parts = [part(0), part(1, rank=2)]
    tree, lora, lineage = merge_adapters(parts, "cat")
    mine = tree["layers"]["attn"]["q_proj"]
    assert lora.rank == 6
    expected = sum(
        p.weight * p.lora.scaling * np.matmul(*flatten_dict(p.params).values()) for p in parts
    )
    np.testing.assert_allclose(np.matmul(mine["a"], mine["b"]), expected, atol=1e-5)
    assert lineage["adapters"][1] == {"name": "adapter1", "weight": 0.5}


@pytest.mark.parametrize(
    ("parts", "method", "density", "message"),
    [
        ([part(0)], "tie", 0.2, "unknown"),
        ([], "ties", 0.2, "no adapters"),
        ([part(0)], "ties", 0.0, "density"),
        ([part(0), part(1, rank=2)], "ties", 0.2, "one rank"),
    ],
)
def test_refusals(parts, method, density, message):
    with pytest.raises(UserError, match=message):
        merge_adapters(parts, method, density=density)
