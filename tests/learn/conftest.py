"""A tiny decoder, token examples without any text, and one real batch on SmolLM2."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.learn.batches import Batches
from selfevo_jax.learn.logps import sequence_sums
from selfevo_jax.learn.losses import Sequences
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora
from selfevo_jax.text.render import TokenExample, TokenSpan, render_example
from selfevo_jax.text.tokenizer import load_tokenizer
from selfevo_jax.weights.model_files import save_model
from selfevo_jax.weights.peft import save_peft

TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128, tie_embeddings=True,
)  # fmt: skip


def span(tokens, loss):
    tokens = np.asarray(tokens, np.int32)
    return TokenSpan(tokens, np.broadcast_to(np.asarray(loss, np.bool_), tokens.shape).copy())


def example(id, prompt, *completions):
    """A `TokenExample` with loss on its completions alone."""
    return TokenExample(id, span(prompt, False), tuple(span(c, True) for c in completions))


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def tiny_params():
    return init_params(TINY, jax.random.key(1))


@pytest.fixture(scope="session")
def make_example():
    return example


@pytest.fixture(scope="session")
def make_span():
    return span


@pytest.fixture(scope="session")
def pairs():
    """12 pairs of random tokens and lengths."""
    rng = np.random.default_rng(5)

    def some(low, high):
        return rng.integers(1, TINY.vocab_size, rng.integers(low, high))

    return [example(f"pair{i}", some(2, 14), some(1, 12), some(1, 12)) for i in range(12)]


REAL_PAIRS, REAL_TOKENS = 6, 72
REAL_LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="session")
def smollm2_batch(smollm2, shared_data, tmp_path_factory):
    """Real pairs on SmolLM2 with an adapter that does something, by two roads.

    `mask`, `policy`, `reference`, `lengths`, `nll` are TRL's: its collator and fused head over
    transformers and PEFT, chosen rows first. `sums(ld_alpha)` are ours: packed, prompts shared.
    """
    params, tokenizer = smollm2.load(), load_tokenizer(smollm2.path)
    tree = init_lora(smollm2.config, REAL_LORA, jax.random.key(0))
    draw = np.random.default_rng(0).normal
    tree = jax.tree.map(lambda leaf: leaf + draw(0, 0.03, leaf.shape).astype("f4"), tree)
    folder = tmp_path_factory.mktemp("smollm2")
    save_model(folder / "base", smollm2.config, params)
    save_peft(folder / "adapter", tree, REAL_LORA, "base")
    examples = _short_pairs(tokenizer, shared_data / "instruction_small/preference_data.jsonl")
    batch = _by_trl(folder, examples)
    batch.sums = functools.cache(
        lambda ld_alpha=1.0: _by_us(smollm2.config, params, tree, examples, ld_alpha)
    )
    return batch


def _short_pairs(tokenizer, path):
    examples = []
    for number, line in enumerate(path.open(encoding="utf-8")):
        row = json.loads(line)
        ask = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
        one = render_example(tokenizer, f"{number}", ask, (row["chosen"], row["rejected"]), 8192)
        if len(one.prompt.tokens) + max(len(c.tokens) for c in one.completions) <= REAL_TOKENS:
            examples.append(one)
        if len(examples) == REAL_PAIRS:
            return examples
    raise AssertionError(f"{path} has fewer than {REAL_PAIRS} short pairs")


def _by_trl(folder, examples):
    torch = pytest.importorskip("torch", reason="the parity libraries are not installed")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.utils import add_fused_lm_head

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    add_fused_lm_head(model)
    model = PeftModel.from_pretrained(model, folder / "adapter").eval()
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    inputs = DataCollatorForPreference(pad_token_id=0)(
        [
            dict(zip(names, (s.tokens.tolist() for s in (e.prompt, *e.completions)), strict=True))
            for e in examples
        ]
    )
    mask = inputs.pop("completion_mask")
    labels = inputs["input_ids"].masked_fill(mask == 0, -100)
    with torch.no_grad():
        policy = model(**inputs, labels=labels, fused_lm_head=True)
        with model.disable_adapter():
            reference = model(**inputs, labels=labels, fused_lm_head=True)
    return SimpleNamespace(
        mask=mask.numpy(), policy=policy.log_probs.numpy(), reference=reference.log_probs.numpy(),
        lengths=mask.sum(1).numpy(), nll=float(policy.loss),
    )  # fmt: skip


def _by_us(config, params, tree, examples, ld_alpha):
    plan = Batches(examples, batch_size=len(examples), steps=1, seed=0, rows=2, ld_alpha=ld_alpha)
    run = jax.jit(functools.partial(sequence_sums, config))
    found = np.zeros((2, len(examples), 2), np.float32)
    tokens = np.zeros((len(examples), 2), np.float32)
    for micro in plan.micro_batches(0):
        filled = micro.examples_be >= 0
        tokens[micro.examples_be[filled]] = micro.counts_bek[filled]
        for side, policy in enumerate((adapter(tree, REAL_LORA), None)):
            found[side, micro.examples_be[filled]] = run(params, policy, micro)[filled]
    policy, reference = jnp.asarray(found)
    return Sequences(policy, jnp.asarray(tokens), reference, jnp.zeros_like(policy))
