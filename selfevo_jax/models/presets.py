"""Published models by name: the shapes of their decoders, nothing else."""

from __future__ import annotations

import difflib
from dataclasses import replace

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import Llama3RopeScaling, ModelConfig


def _llama(vocab, width, ffn, layers, heads, kv_heads, context, **other) -> ModelConfig:
    head_dim = other.pop("head_dim", width // heads)
    return ModelConfig(vocab, width, ffn, layers, heads, kv_heads, head_dim, context, **other)


def _gemma2(width, ffn, layers, heads, kv_heads, query_width) -> ModelConfig:
    return _llama(
        256_000, width, ffn, layers, heads, kv_heads, 8192,
        head_dim=256, norm_eps=1e-6, tie_embeddings=True, window=4096, alternate_window=True,
        activation="gelu_tanh", scale_embeddings=True, norm_plus_one=True, post_norms=True,
        attn_softcap=50.0, final_softcap=30.0, query_scale=query_width**-0.5, family="gemma2",
    )  # fmt: skip


_LLAMA3 = dict(rope_theta=500_000.0)
_LLAMA32 = dict(
    rope_theta=500_000.0, rope_scaling=Llama3RopeScaling(32.0, 1.0, 4.0, 8192), tie_embeddings=True
)
_SMOL = dict(rope_theta=100_000.0, tie_embeddings=True)
_OPEN = dict(norm_eps=1e-6)
_QWEN = dict(rope_theta=1_000_000.0, norm_eps=1e-6, qkv_bias=True, family="qwen2")
_LLAMA3_8B = _llama(128_256, 4096, 14_336, 32, 32, 8, 8192, **_LLAMA3)

PRESETS: dict[str, ModelConfig] = {
    "tiny": _llama(512, 64, 128, 2, 4, 2, 512, tie_embeddings=True),
    "smollm2_135m": _llama(49_152, 576, 1536, 30, 9, 3, 8192, **_SMOL),
    "smollm2_360m": _llama(49_152, 960, 2560, 32, 15, 5, 8192, **_SMOL),
    "smollm2_1b7": _llama(
        49_152, 2048, 8192, 24, 32, 32, 8192, rope_theta=130_000.0, tie_embeddings=True
    ),
    "tinyllama_1b": _llama(32_000, 2048, 5632, 22, 32, 4, 2048),
    "llama32_1b": _llama(128_256, 2048, 8192, 16, 32, 8, 131_072, **_LLAMA32),
    "llama32_3b": _llama(128_256, 3072, 8192, 28, 24, 8, 131_072, **_LLAMA32),
    "open_llama_3b": _llama(32_000, 3200, 8640, 26, 32, 32, 2048, **_OPEN),
    "open_llama_7b": _llama(32_000, 4096, 11_008, 32, 32, 32, 2048, **_OPEN),
    "open_llama_13b": _llama(32_000, 5120, 13_824, 40, 40, 40, 2048, **_OPEN),
    "llama2_7b": _llama(32_000, 4096, 11_008, 32, 32, 32, 4096),
    "llama2_13b": _llama(32_000, 5120, 13_824, 40, 40, 40, 4096),
    "llama3_8b": _LLAMA3_8B,
    "llama31_8b": replace(
        _LLAMA3_8B, max_position=131_072, rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 8192)
    ),
    "mistral_7b": _llama(
        32_000, 4096, 14_336, 32, 32, 8, 32_768, window=4096, family="mistral"
    ),
    "qwen2_7b": _llama(152_064, 3584, 18_944, 28, 28, 4, 32_768, **_QWEN),
    "qwen25_7b": _llama(152_064, 3584, 18_944, 28, 28, 4, 131_072, **_QWEN),
    "qwen25_0b5": _llama(151_936, 896, 4864, 24, 14, 2, 32_768, **_QWEN, tie_embeddings=True),
    "gemma2_2b": _gemma2(2304, 9216, 26, 8, 4, 256),
    "gemma2_9b": _gemma2(3584, 14_336, 42, 16, 8, 256),
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """The decoder of a published model. Raises `UserError` with the nearest names."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, 3, 0.3) or sorted(PRESETS)
    raise UserError(f"unknown model preset {name!r}; nearest: {', '.join(near)}")
