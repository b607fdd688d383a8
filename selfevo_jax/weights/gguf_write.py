"""Writing GGUF files that llama.cpp loads, in the conventions that `gguf_io` undoes.

Rows of q and k of the llama architecture are permuted for interleaved RoPE, Gemma's norms carry
their +1, Llama 3's rope scaling becomes the tensor `rope_freqs.weight`. What is written is read
back: a config that the format cannot say is an error, never another model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import LinearRopeScaling, Llama3RopeScaling, ModelConfig
from selfevo_jax.weights.gguf_config import llama3_factors
from selfevo_jax.weights.gguf_io import ROPE_FACTORS, GgufFile, half_split_rows
from selfevo_jax.weights.model_files import outgoing
from selfevo_jax.weights.storage import atomic_file

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "gemma2": "gemma2"}
KINDS = {"float32": Kind.F32, "float16": Kind.F16, "bfloat16": Kind.BF16}


def save_gguf(
    path: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    vocabulary: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Write one GGUF file, whole or not at all; equal input, equal bytes.

    `vocabulary` holds the `tokenizer.*` metadata (`text.gguf_vocabulary`). Matrices are stored as
    `dtype` (float32, float16 or bfloat16), vectors as float32. Raises UserError for an
    architecture that GGUF cannot express and when the disk refuses.
    """
    architecture = _architecture(config)
    tensors = list(_tensors(config, params, architecture))
    with atomic_file(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        _describe(writer, config, vocabulary)
        for name, shape, _ in tensors:
            kind = _kind(shape, dtype)
            size = int(np.prod(shape)) * jnp.dtype(_NUMPY[kind]).itemsize
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, shape, value in tensors:
            writer.write_tensor_data(_stored(value(), _kind(shape, dtype)))
        writer.close()
        _check_readable(temporary, config)


_NUMPY = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: jnp.bfloat16}


def _kind(shape: tuple[int, ...], dtype: str) -> Kind:
    return KINDS[dtype] if len(shape) == 2 else Kind.F32


def _stored(value: np.ndarray, kind: Kind) -> np.ndarray:
    """The bytes of a tensor as an array that can be written."""
    return np.ascontiguousarray(value, _NUMPY[kind]).view(np.uint8)


def _architecture(config: ModelConfig) -> str:
    architecture = _ARCHITECTURES[config.family]
    if architecture == "llama" and config.window:
        raise UserError(
            f"llama.cpp knows no sliding window ({config.window} tokens) for this architecture; "
            "export with --format=safetensors"
        )
    return architecture


def _tensors(
    config: ModelConfig, params: Mapping[str, Any], architecture: str
) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """(name, shape [out, in] or [size], what gives the float values), in the order of the file."""
    if isinstance(config.rope_scaling, Llama3RopeScaling):
        factors = llama3_factors(config.rope_scaling, config.rope_theta, config.head_dim)
        yield ROPE_FACTORS, factors.shape, lambda: factors
    heads = {".attn_q.": config.num_heads, ".attn_k.": config.num_kv_heads}
    for tensor in outgoing(config, params, "gguf"):
        take = tensor.value
        for part, count in heads.items():
            if part in tensor.name and architecture == "llama":
                rows = np.argsort(half_split_rows(tensor.shape[0], count))
                take = lambda take=take, rows=rows: take()[rows]  # noqa: E731
        if config.norm_plus_one and tensor.name.endswith("norm.weight"):
            take = lambda take=take: take() + np.float32(1)  # noqa: E731
        yield tensor.name, tensor.shape, take


def _describe(writer: GGUFWriter, config: ModelConfig, vocabulary: Mapping[str, Any]) -> None:
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if isinstance(config.rope_scaling, LinearRopeScaling):
        writer.add_string(f"{writer.arch}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    for add, value in (
        (writer.add_sliding_window, config.window),
        (writer.add_attn_logit_softcapping, config.attn_softcap),
        (writer.add_final_logit_softcapping, config.final_softcap),
    ):
        if value is not None:
            add(value)
    for key, value in vocabulary.items():
        _add(writer, key, value)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Adds a value under the type that llama.cpp expects of its kind."""
    add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _check_readable(path: Path, config: ModelConfig) -> None:
    """Refuses a config that comes back as another one."""
    read = replace(GgufFile(path).config, family=config.family)
    names = ("rope_theta", "norm_eps", "attn_softcap", "final_softcap")  # float32 in the file
    close = all(
        np.allclose(getattr(read, name) or 0, getattr(config, name) or 0, rtol=1e-6)
        for name in names
    )
    same = {name: getattr(config, name) for name in names}
    scale = np.isclose(read.scale, config.scale)
    read = replace(read, **same, query_scale=config.query_scale)
    if not (close and scale and read == config):
        raise UserError(
            "GGUF cannot say everything of this architecture (as read back: "
            f"{read}); export with --format=safetensors"
        )
