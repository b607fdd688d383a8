"""GGUF metadata -> ModelConfig, by an allow-list of keys per architecture.

Key names: llama.cpp `gguf-py/gguf/constants.py`; their meaning: `convert_hf_to_gguf.py`.
"""

import math
from typing import Any

import numpy as np

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import LinearRopeScaling, Llama3RopeScaling, ModelConfig
from selfevo_jax.weights.gguf_header import GgufHeader
from selfevo_jax.weights.names import MAX_LAYERS

ARCHITECTURES = ("llama", "qwen2", "gemma2")
_GEMMA2_27B_LAYERS = 46  # llama.cpp tells the sizes apart by their depth
_FREE_PREFIXES = ("general.", "tokenizer.", "quantize.", "split.")
_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "vocab_size",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "expert_count",
    "expert_used_count",
}


class _Fields:
    """The metadata of one architecture; every failure names the key and the file."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.arch = header.metadata.get("general.architecture")
        if self.arch not in ARCHITECTURES:
            raise UserError(
                f"{header.path}: architecture {self.arch!r} is not supported; "
                f"supported: {', '.join(ARCHITECTURES)}"
            )
        self._refuse_unknown()

    def _refuse_unknown(self) -> None:
        for key in self.header.metadata:
            own = key.removeprefix(f"{self.arch}.")
            if own in _READ or key.startswith(_FREE_PREFIXES):
                continue
            raise UserError(f"{self.header.path}: metadata key {key!r} is not supported")
        if self.header.metadata.get("split.count", 1) > 1:
            raise UserError(
                f"{self.header.path}: one part of a split GGUF; join the parts with "
                "`llama-gguf-split --merge`"
            )

    def fail(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.header.path}: {self.arch}.{key} {problem}")

    def number(self, key: str, default: float | None = None) -> float:
        value = self.header.metadata.get(f"{self.arch}.{key}", default)
        if value is None:
            raise self.fail(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(key, f"is {value!r}; only one number for all layers is supported")
        if not math.isfinite(value) or value < 0:
            raise self.fail(key, f"is {value!r}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value) or value < 1:
            raise self.fail(key, f"is {value!r}, not a positive whole number")
        return int(value)


def llama3_factors(scaling: Llama3RopeScaling, theta: float, head_dim: int) -> np.ndarray:
    """What llama.cpp divides each rotary frequency by, float32 [head_dim / 2].

    Source: `LlamaModel.generate_extra_tensors` in llama.cpp's convert_hf_to_gguf.py.
    """
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_max_position / wavelength - low) / (high - low)
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32)


def _fit_llama3(fields: _Fields, factors: np.ndarray) -> Llama3RopeScaling:
    """Find the scaling behind a `rope_freqs` tensor: GGUF keeps its factors, not its settings.

    Llama 3.1 and 3.2 differ in `factor` only; anything else is refused, not approximated.
    """
    scaling = Llama3RopeScaling(float(factors.max()), 1.0, 4.0, 8192)
    theta, size = fields.number("rope.freq_base", 10_000.0), 2 * len(factors)
    expected = llama3_factors(scaling, theta, size)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(f"{fields.header.path}: tensor rope_freqs.weight is no Llama 3 scaling")
    return scaling


def _rope_scaling(
    fields: _Fields, factors: np.ndarray | None
) -> Llama3RopeScaling | LinearRopeScaling | None:
    if factors is not None:
        return _fit_llama3(fields, factors)
    kind = fields.header.metadata.get(f"{fields.arch}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise fields.fail("rope.scaling.type", f"is {kind!r}; supported: none, linear, llama3")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    return None if factor in (0.0, 1.0) else LinearRopeScaling(float(factor))


def _head_dim(fields: _Fields, heads: int) -> int:
    default = max(fields.count("embedding_length") // heads, 1)
    size = fields.count("attention.key_length", default)
    if size % 2:
        raise fields.fail("attention.key_length", f"is {size}: rotary positions need an even size")
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.count(key, size) != size:
            raise fields.fail(key, f"differs from the head size {size}; not supported")
    return size


def _gemma2(fields: _Fields, layers: int, heads: int) -> dict[str, Any]:
    wide = layers == _GEMMA2_27B_LAYERS
    width = fields.count("embedding_length") / heads if wide else _head_dim(fields, heads)
    return {
        "family": "gemma2",
        "window": fields.count("attention.sliding_window", 4096),
        "alternate_window": True,
        "activation": "gelu_tanh",
        "scale_embeddings": True,
        "norm_plus_one": True,
        "post_norms": True,
        "attn_softcap": float(fields.number("attn_logit_softcapping", 50.0)),
        "final_softcap": float(fields.number("final_logit_softcapping", 30.0)),
        "query_scale": width**-0.5,
    }


def _family(fields: _Fields, layers: int, heads: int) -> dict[str, Any]:
    if fields.arch == "gemma2":
        return _gemma2(fields, layers, heads)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.number(key, 0):
            raise fields.fail(key, f"is not supported for {fields.arch}")
    window = int(fields.number("attention.sliding_window", 0)) or None
    family = "mistral" if window and fields.arch == "llama" else fields.arch
    return {"window": window, "qkv_bias": fields.arch == "qwen2", "family": family}


def config_from_gguf(header: GgufHeader, rope_factors: np.ndarray | None) -> ModelConfig:
    """The architecture in a GGUF file's metadata.

    `rope_factors` is the dequantised `rope_freqs.weight` [head_dim / 2], where there is one.
    Mistral files name themselves llama; without a window they come out as llama: same numbers.
    Raises UserError for an unknown architecture or key.
    """
    fields = _Fields(header)
    if fields.number("expert_count", 0):
        raise fields.fail("expert_count", "is not 0: mixtures of experts are not supported")
    if "token_embd.weight" not in header.tensors:
        raise UserError(f"{header.path}: missing tensor token_embd.weight")
    layers, heads = fields.count("block_count"), fields.count("attention.head_count")
    kv_heads = fields.count("attention.head_count_kv", heads)
    if layers > MAX_LAYERS:
        raise fields.fail("block_count", f"is {layers}; at most {MAX_LAYERS} are believed")
    if heads % kv_heads:
        raise fields.fail("attention.head_count_kv", f"is {kv_heads}: no divisor of {heads} heads")
    return ModelConfig(
        vocab_size=header.tensors["token_embd.weight"].shape[0],
        hidden_size=fields.count("embedding_length"),
        intermediate_size=fields.count("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(fields, heads),
        max_position=fields.count("context_length"),
        rope_theta=float(fields.number("rope.freq_base", 10_000.0)),
        rope_scaling=_rope_scaling(fields, rope_factors),
        norm_eps=float(fields.number("attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in header.tensors,
        **_family(fields, layers, heads),
    )
