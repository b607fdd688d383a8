"""Whole fits that must agree, whatever way of computing them is chosen."""

import dataclasses

import jax
import numpy as np
import pytest

from selfevo_jax.learn.batches import Batches
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.trainer import FitSettings, JaxTrainer
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora, merge_lora
from selfevo_jax.text.render import TokenExample, TokenSpan

CONFIG = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128,
)  # fmt: skip
# An SFT term beside DPO: its mean is over tokens, DPO's over pairs, so a wrong denominator shows.
OBJECTIVE = Objective("dpo", beta=0.3, sft_weight=0.2)
LENGTH = 32
SETTINGS = FitSettings(
    steps=4, batch_size=6, lr=1e-3, warmup=0.0, lora=LoraConfig(rank=4), row_length=LENGTH
)


def pairs():
    """Pairs of which no two fit in a row of LENGTH, so that such rows are not packed."""
    rng = np.random.default_rng(4)

    def span(size, loss):
        return TokenSpan(rng.integers(1, 96, size).astype(np.int32), np.full(size, loss))

    sizes = [rng.integers(6, 11, 3) for _ in range(9)]
    return [
        TokenExample(f"p{i}", span(a, False), (span(b, True), span(c, True)))
        for i, (a, b, c) in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(1))


def fit(params, folder, compute=Compute(remat="none"), reference=None, store=None, **changes):
    trainer = JaxTrainer(CONFIG, params, base_hash="tiny", compute=compute)
    settings = dataclasses.replace(SETTINGS, **changes)
    return trainer.fit(pairs(), OBJECTIVE, settings, folder, reference=reference, store=store)


@pytest.fixture(scope="module")
def plain(params, tmp_path_factory):
    """A pair a row, a row at a time, all activations kept."""
    return fit(params, tmp_path_factory.mktemp("plain"))


def zero_policy():
    """A reference of its own that is the base: a fresh adapter adds nothing."""
    return adapter(init_lora(CONFIG, SETTINGS.lora, jax.random.key(8)), SETTINGS.lora)


VARIANTS = {
    "packed": {"row_length": 4 * LENGTH},
    "accumulated otherwise": {"micro_rows": 4},
    "products kept": {"compute": Compute(remat="dots")},
    "nothing kept": {"compute": Compute(remat="full")},
    "a separate reference": {"reference": zero_policy},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_trajectory_is_the_same(params, plain, tmp_path, name):
    """Every step's loss and gradient norm, and what was trained. (Adam divides a gradient by its
    own size, so rounding is less small in the parameters than in the losses.)"""
    options = {key: make() if callable(make) else make for key, make in VARIANTS[name].items()}
    other = fit(params, tmp_path, **options)
    for metric in ("loss", "grad_norm", "kl", "margin", "tokens"):
        ours, theirs = ([row[metric] for row in f.metrics] for f in (other, plain))
        assert ours == pytest.approx(theirs, abs=1e-5), metric
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other.trained, plain.trained
    )


def test_the_variants_are_what_they_say():
    """One pair in a row of LENGTH, several in a longer one."""
    slots = [
        Batches(pairs(), batch_size=6, steps=4, seed=0, row_length=length).shape.slots
        for length in (LENGTH, VARIANTS["packed"]["row_length"])
    ]
    assert slots[0] == 1 and slots[1] > 2


def test_a_reference_adapter_is_the_separate_model(params, tmp_path):
    """The sums kept of a policy as base and adapter, and as a merged base with none."""
    tree = init_lora(CONFIG, SETTINGS.lora, jax.random.key(3))
    tree = jax.tree.map(lambda leaf: leaf + 0.05, tree)
    policy = adapter(tree, SETTINGS.lora)
    found = fit(params, tmp_path / "a", reference=policy, store=tmp_path / "adapter", steps=1)
    fit(merge_lora(params, policy), tmp_path / "b", store=tmp_path / "merged", steps=1)
    np.testing.assert_allclose(sums(tmp_path / "adapter"), sums(tmp_path / "merged"), atol=1e-4)
    assert found.metrics[0]["kl"] > 0.01  # the start is the base, far from this reference


def sums(folder):
    """The one file of a store, in the order of the examples' hashes."""
    (path,) = folder.iterdir()
    with np.load(path) as stored:
        return stored["sums"][np.argsort(stored["examples"])]
