"""Fits in torch against the same fits in JAX, and what a torch fit promises by itself."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from selfevo_jax.errors import UserError
from selfevo_jax.learn.carried import Carried
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.learn.trainer import JaxTrainer
from selfevo_jax.models.attention import Layout as JaxLayout
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import forward, init_params, logits
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora
from selfevo_jax.torch_backend.lora import attached
from selfevo_jax.torch_backend.model import Decoder, Layout
from selfevo_jax.torch_backend.trainer import TorchTrainer
from selfevo_jax.weights.peft import load_peft, save_peft

LORA = FitSettings(steps=20, batch_size=2, lr=1e-2, lora=LoraConfig(rank=4), checkpoint_every=6)
FULL = replace(LORA, lora=None, lr=1e-3, weight_decay=0.1)
SHORT = replace(LORA, steps=9, checkpoint_every=4)
FITS = {
    "dpo": (Objective("dpo"), LORA),
    "sft": (Objective("sft"), LORA),
    "sft of all parameters": (Objective("sft"), FULL),
}


def operations(folder):
    """Of every step."""
    return [
        json.loads(line)["flops"] for line in (folder / "timings.jsonl").read_text().splitlines()
    ]


def differences(one, other):
    return jax.tree.leaves(
        jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), one, other)
    )


@pytest.mark.parametrize("name", FITS)
def test_twenty_steps_are_those_of_jax(name, tiny, tiny_params, decoder, pairs, tmp_path):
    objective, settings = FITS[name]
    wanted = JaxTrainer(tiny, tiny_params, base_hash="tiny").fit(
        pairs, objective, settings, tmp_path / "jax"
    )
    before = decoder.base_parameter("model.layers.1.mlp.up_proj.weight").clone()
    found = TorchTrainer(decoder, base_hash="tiny").fit(
        pairs, objective, settings, tmp_path / "torch"
    )
    assert len(found.metrics) == 20
    for mine, theirs in zip(found.metrics, wanted.metrics, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        for exact in ("lr", "tokens", "padding_share", "examples", "loss_tokens"):
            assert mine[exact] == theirs[exact], exact
    counted = [operations(tmp_path / name) for name in ("jax", "torch")]
    assert counted[0] == counted[1] and counted[0][0] > 0
    assert abs(found.metrics[0]["loss"] - found.metrics[-1]["loss"]) > 0.01
    assert max(differences(wanted.trained, found.trained)) < 1e-3
    assert found.adapter_shift == pytest.approx(wanted.adapter_shift, rel=1e-3)
    # The decoder is as it was.
    after = decoder.base_parameter("model.layers.1.mlp.up_proj.weight")
    assert torch.equal(before, after) and not after.requires_grad


@functools.partial(jax.jit, static_argnums=0)
def logits_of_jax(config, params, tokens, layout, acting):
    return logits(config, params, forward(config, params, tokens, layout, adapter=acting))


def random_adapter(config, rank=3, targets=r"layers/attn/(q|o)_proj|layers/mlp/.*", seed=0):
    lora = LoraConfig(rank=rank, alpha=6.0, targets=targets)
    tree = init_lora(config, lora, jax.random.key(seed))
    return jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(9), x.shape), tree
    ), lora


FAMILIES = {
    "llama": {},
    "mistral": {"family": "mistral", "window": 5},
    "qwen2": {"family": "qwen2", "qkv_bias": True, "norm_eps": 1e-6},
    "gemma2": {
        "family": "gemma2", "window": 4, "alternate_window": True, "activation": "gelu_tanh",
        "scale_embeddings": True, "norm_plus_one": True, "post_norms": True,
        "attn_softcap": 5.0, "final_softcap": 3.0, "query_scale": 0.25,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_the_logits_of_jax(family, tiny):
    """Segments, branches, padding and windows in one row, with and without an adapter."""
    config: ModelConfig = replace(tiny, **FAMILIES[family])
    params = init_params(config, jax.random.key(2))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), params)
    decoder = Decoder.from_tree(config, params, Compute())
    segments = np.repeat([1, 2, 0], [14, 8, 2])[None]
    branches = np.repeat([0, 1, 2, 0, 1, 0], [6, 4, 4, 5, 3, 2])[None]
    positions = np.concatenate([np.arange(10), 6 + np.arange(4), np.arange(8), np.zeros(2, int)])[
        None
    ]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 24))
    layout = JaxLayout(*(x.astype(np.int32) for x in (positions, segments, branches)))
    tree, lora = random_adapter(config)
    for acting in (None, adapter(tree, lora)):
        wanted = np.asarray(logits_of_jax(config, params, tokens, layout, acting))[:, :22]
        places = Layout(*(torch.tensor(x) for x in (positions, segments, branches)))
        with attached(decoder, acting), torch.no_grad():
            found = decoder.logits(decoder.hidden(torch.tensor(tokens), places, places))
        np.testing.assert_allclose(found[:, :22], wanted, atol=2e-5)


# peft asks transformers by a name that the newest one has replaced.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_adapters_go_back_and_forth(tiny, tiny_params, decoder, pairs, tmp_path):
    """Trained in torch, our PEFT folder gives the same logits in JAX and in peft itself."""
    fit = TorchTrainer(decoder, base_hash="tiny").fit(
        pairs, Objective("dpo"), SHORT, tmp_path / "fit"
    )
    save_peft(tmp_path / "adapter", fit.trained, SHORT.lora, "tiny")
    tree, lora = load_peft(tmp_path / "adapter", tiny)
    tokens = np.arange(1, 30)[None]
    layout = JaxLayout.plain(np.ones_like(tokens, bool))
    base = logits_of_jax(tiny, tiny_params, tokens, layout, None)
    mine = np.asarray(logits_of_jax(tiny, tiny_params, tokens, layout, adapter(tree, lora)))
    assert np.abs(mine - np.asarray(base)).max() > 0.1
    plain = Decoder.from_tree(tiny, tiny_params, Compute())
    theirs = peft.PeftModel.from_pretrained(plain.module, str(tmp_path / "adapter"))
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.tensor(tokens)).logits, mine, atol=1e-4)


def test_two_fits_over_which_the_optimiser_goes_on_are_one(decoder, pairs, tmp_path):
    settings = replace(SHORT, batch_size=len(pairs), schedule="constant", warmup=0.0, steps=2)
    trainer, one = TorchTrainer(decoder, base_hash="tiny"), tmp_path / "one.file"
    fit = functools.partial(trainer.fit, pairs, Objective("sft"))
    whole = fit(replace(settings, steps=4), tmp_path / "all")
    first = fit(settings, tmp_path / "a", carried=Carried(None, one))
    for label, carried, same in (("b", Carried(one, tmp_path / "x"), True), ("c", None, False)):
        second = fit(settings, tmp_path / label, start=first.trained, carried=carried)
        assert (max(differences(whole.trained, second.trained)) < 2e-5) is same


class Killed(Exception):
    pass


def killed_at(step):
    def on_step(row):
        if row["step"] == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("lora", [LoraConfig(rank=4, dropout=0.1), None])
def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(lora, decoder, pairs, tmp_path):
    settings = replace(SHORT, lora=lora, lr=1e-3)
    trainer = TorchTrainer(decoder, base_hash="tiny")
    fit = Objective("dpo"), settings
    whole = trainer.fit(pairs, *fit, tmp_path / "whole")
    with pytest.raises(Killed):
        trainer.fit(pairs, *fit, tmp_path / "cut", on_step=killed_at(6))
    steps = []
    resumed = trainer.fit(
        pairs, *fit, tmp_path / "cut", on_step=lambda row: steps.append(row["step"])
    )
    assert steps == [4, 5, 6, 7, 8]
    assert max(differences(whole.trained, resumed.trained)) == 0
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    assert sorted(p.suffix for p in (tmp_path / "cut/checkpoints").rglob("*.*")) == [
        ".json", ".json", ".safetensors", ".safetensors",
    ]  # fmt: skip
    again = trainer.fit(pairs, *fit, tmp_path / "cut", on_step=killed_at(0))
    assert max(differences(whole.trained, again.trained)) == 0
    with pytest.raises(UserError, match=r"learn\.lr"):
        trainer.fit(pairs, fit[0], replace(settings, lr=2e-3), tmp_path / "cut")


def test_a_damaged_checkpoint_is_refused(decoder, pairs, tmp_path):
    trainer, fit = TorchTrainer(decoder, base_hash="tiny"), (Objective("dpo"), SHORT)
    with pytest.raises(Killed):
        trainer.fit(pairs, *fit, tmp_path, on_step=killed_at(6))
    state = tmp_path / "checkpoints" / "00000004" / "state.safetensors"
    data = state.read_bytes()
    state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged"):
        trainer.fit(pairs, *fit, tmp_path)
    state.write_bytes(data)
    trainer.fit(pairs, *fit, tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9


def test_recomputing_layers_changes_nothing(tiny, tiny_params, decoder, pairs, tmp_path):
    other = Decoder.from_tree(tiny, tiny_params, Compute(remat="full"))
    assert other.module.model.layers[0].gradient_checkpointing
    one, two = (
        TorchTrainer(d, base_hash="tiny").fit(pairs, Objective("dpo"), SHORT, tmp_path / name)
        for name, d in (("plain", decoder), ("recomputed", other))
    )
    assert max(differences(one.trained, two.trained)) < 1e-6


def test_the_best_of_held_out_losses_is_kept(decoder, pairs, tmp_path):
    settings = replace(SHORT, eval_share=0.3, eval_every=2, keep="best", lr=0.3)
    result = TorchTrainer(decoder, base_hash="tiny").fit(
        pairs, Objective("dpo"), settings, tmp_path
    )
    measured = {row["step"] + 1: row["eval_loss"] for row in result.metrics if "eval_loss" in row}
    assert result.best_step == min(measured, key=measured.get) != 9
    assert (tmp_path / "best" / f"{result.best_step:08d}" / "state.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_the_fit(decoder, pairs, tmp_path):
    settings = replace(SHORT, lr=1e30, schedule="constant", warmup=0.0)
    with pytest.raises(UserError, match=r"not_finite\.json"):
        TorchTrainer(decoder, base_hash="tiny").fit(pairs, Objective("sft"), settings, tmp_path)
    assert json.loads((tmp_path / "not_finite.json").read_text())["examples"]


def test_what_torch_does_not_have_is_said(decoder, pairs, tmp_path):
    settings = replace(SHORT, optimizer="adafactor")
    with pytest.raises(UserError, match="adafactor.*adamw"):
        TorchTrainer(decoder, base_hash="tiny").fit(pairs, Objective("sft"), settings, tmp_path)


def test_bfloat16_keeps_small_steps_and_rotary_angles(tiny, tiny_params, pairs, tmp_path):
    """The base is in bfloat16, what is trained in float32, as in JAX."""
    compute = Compute(jnp.bfloat16)
    decoder = Decoder.from_tree(tiny, tiny_params, compute)
    assert decoder.base_parameter("model.embed_tokens.weight").dtype == torch.bfloat16
    wanted = 10_000.0 ** -(np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(decoder.module.model.rotary_emb.inv_freq, wanted, rtol=1e-6)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_params)
    fit = pairs, Objective("dpo"), replace(LORA, lr=1e-4, schedule="constant", warmup=0.0)
    in_jax, found = (
        trainer.fit(*fit, tmp_path / name)
        for name, trainer in (
            ("jax", JaxTrainer(tiny, half, base_hash="tiny", compute=compute)),
            ("torch", TorchTrainer(decoder, base_hash="tiny")),
        )
    )
    assert max(differences(in_jax.trained, found.trained)) < 1e-3
    losses = ([row["loss"] for row in result.metrics] for result in (in_jax, found))
    np.testing.assert_allclose(*losses, atol=5e-3)
    # A step is 1e-4, and bfloat16 knows no number between 0.25 and 0.251.
    start = init_lora(tiny, LORA.lora, jax.random.key(0))
    steps = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(change)])
        for change in (jax.tree.map(np.subtract, r.trained, start) for r in (in_jax, found))
    ]
    assert np.corrcoef(*steps)[0, 1] > 0.9
