"""The flop formula against XLA's own count of the step, and torch's, for every family."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from selfevo_jax.learn.batches import Batches
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.optimizer import optimizer
from selfevo_jax.learn.step import Frozen, Numbers, Recipe, train_programs
from selfevo_jax.models.flops import forward_flops, mfu, peak_of, train_flops
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.models.presets import PRESETS, preset
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.text.render import TokenExample, TokenSpan
from selfevo_jax.weights.hf_config import config_to_json

LENGTH = 256
FAMILIES = {preset(name).family: name for name in PRESETS}


def wide(family):
    """One layer (XLA counts a loop's body once) as wide as real models, so that what is no matrix
    product stays small; the family's biases, norms, caps and activation are kept."""
    return dataclasses.replace(
        preset(FAMILIES[family]), num_layers=1, hidden_size=2048, intermediate_size=5632,
        num_heads=16, num_kv_heads=4, head_dim=128, vocab_size=4096, max_position=512, window=None,
        alternate_window=False,
    )  # fmt: skip


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])
def test_within_two_percent_of_xla(family, lora):
    config = wide(family)
    tokens = np.arange(LENGTH + 1, dtype=np.int32)
    example = TokenExample(
        "one",
        TokenSpan(tokens[:129], np.zeros(129, bool)),
        (TokenSpan(tokens[129:], np.ones(LENGTH - 128, bool)),),
    )
    plan = Batches([example], batch_size=1, steps=1, seed=0, row_length=LENGTH)
    (micro,) = plan.micro_batches(0)
    assert micro.targets_bm.shape == (1, 128)  # one chunk of the head
    params = abstract_params(config)
    tree = jax.eval_shape(lambda: init_lora(config, LoraConfig(), jax.random.key(0)))
    trainable, frozen = (tree, params) if lora else (params, {})
    recipe = Recipe(config, Objective("sft"), lora)
    others = Frozen(np.zeros_like(micro.counts_bek), np.zeros_like(micro.counts_bek))
    run = train_programs(recipe, optimizer("adamw"), make_mesh(), trainable)
    numbers = Numbers(np.float32(0), np.float32(1))
    lowered = run.accumulate.lower(
        trainable, trainable, frozen, (micro, others), jnp.ones(1), numbers, jax.random.key(0)
    )
    counts = [lowered.cost_analysis()["flops"]]
    if (
        lora is None
    ):  # with LoRA, optimising leaves out the gradients in what the only layer is given
        counts.append(lowered.compile().cost_analysis()["flops"])
    formula = train_flops(config, LENGTH, 128, lora=lora, keys=LENGTH, recompute=True)
    assert counts == pytest.approx([formula] * len(counts), rel=0.02)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])
def test_what_mfu_asks_for_is_what_torch_counts(family, lora):
    """A step that computes nothing twice, of transformers and peft. In the first of many layers
    they leave out a gradient that the formula has."""
    config = preset(FAMILIES[family])
    config = dataclasses.replace(
        config, num_layers=8, hidden_size=128, intermediate_size=352, num_heads=4, num_kv_heads=2,
        head_dim=32, vocab_size=256, max_position=64, window=config.window and 64,
    )  # fmt: skip
    about = config_to_json(config)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**about), attn_implementation="eager"
    )
    if lora is not None:
        targets = r".*\.(self_attn|mlp)\..*_proj"
        model = peft.get_peft_model(model, peft.LoraConfig(r=lora.rank, target_modules=targets))
    tokens = torch.zeros((1, 64), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens, use_cache=False).loss.backward()
    formula = train_flops(config, 64, 64, lora=lora, keys=64)
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_by_hand():
    """2 tokens, 1 target: 7 kernels of 4 x 4 (kv 4 x 2), inner 8, vocabulary 10."""
    config = dataclasses.replace(
        preset("tiny"), hidden_size=4, intermediate_size=8, num_layers=3, num_heads=2,
        num_kv_heads=1, head_dim=2, vocab_size=10,
    )  # fmt: skip
    kernels = 2 * (16 + 8 + 8 + 16 + 3 * 32)
    assert forward_flops(config, 2, 1, keys=2) == 3 * 2 * (kernels + 4 * 4 * 2) + 2 * 4 * 10
    assert mfu(1e12, 1.0, ["NVIDIA H200"] * 4) == pytest.approx(1 / 4 / 989)
    assert mfu(1e12, 1.0, [jax.devices()[0].device_kind]) is None  # no peak is listed for this CPU


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A1000", None),
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("cpu", None),
    ],
)  # fmt: skip
def test_the_peak_is_that_of_the_device(kind, peak):
    """A v5e was taken for a v5p, more than twice as fast, and an A100 for nothing known."""
    assert peak_of(kind) == peak
