"""A tiny random `transformers` model of every family, and the same weights read by us."""

from dataclasses import dataclass

import numpy as np
import pytest

from selfevo_jax.models.config import ModelConfig
from selfevo_jax.weights.model_files import open_model

_COMMON = dict(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_LLAMA3_ROPE = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
FAMILIES = {
    "llama": ("LlamaConfig", dict(rms_norm_eps=1e-5)),
    "llama_tied_llama3_rope": (
        "LlamaConfig",
        dict(rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE),
    ),
    "llama_linear_rope": (
        "LlamaConfig",
        dict(head_dim=10, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)),
    ),
    "mistral": ("MistralConfig", dict(sliding_window=5, head_dim=16)),
    "qwen2": ("Qwen2Config", dict(rms_norm_eps=1e-6)),
    "gemma2": (
        "Gemma2Config",
        dict(
            sliding_window=5,
            head_dim=16,
            query_pre_attn_scalar=32,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),  # fmt: skip
    ),
}


@dataclass
class Pair:
    """The reference model (torch) and ours: config and parameters."""

    torch_model: object
    config: ModelConfig
    params: dict

    def torch_logits(self, tokens_bt: np.ndarray, mask_bt: np.ndarray | None = None) -> np.ndarray:
        """Logits [b, t, v] of the reference."""
        import torch

        mask = None if mask_bt is None else torch.tensor(mask_bt.astype(np.int64))
        with torch.no_grad():
            return self.torch_model(torch.tensor(tokens_bt), attention_mask=mask).logits.numpy()


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, tmp_path_factory) -> Pair:
    """One family after another, with weights large enough that every part matters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    class_name, extra = FAMILIES[request.param]
    config = getattr(transformers, class_name)(**_COMMON, **extra)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                weight.mul_(5)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    files = open_model(folder)
    return Pair(model, files.config, files.load())
