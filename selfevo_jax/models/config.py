"""The shape of a decoder: every number that changes what the network computes.

One `ModelConfig` describes any LLaMA-family decoder (LLaMA 1 to 3.2, OpenLLaMA, SmolLM2,
TinyLlama, Mistral, Qwen2/2.5, Gemma-2). How it is computed (precision, rematerialisation)
is `Compute`, which never changes the result beyond rounding.
"""

from dataclasses import dataclass

import jax.numpy as jnp


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Frequency-dependent rope scaling of LLaMA 3.1 and 3.2 (Dubey et al., 2024)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class LinearRopeScaling:
    """Positions divided by `factor` (Chen et al., 2023)."""

    factor: float


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a decoder.

    `window` is the sliding-window width in tokens (a query sees itself and the `window - 1`
    tokens before it); `alternate_window` limits it to layers 0, 2, 4, ... (Gemma-2).
    `query_scale` replaces `head_dim ** -0.5` when set.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3RopeScaling | LinearRopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    window: int | None = None
    alternate_window: bool = False
    activation: str = "silu"  # or "gelu_tanh"
    scale_embeddings: bool = False  # multiply embeddings by sqrt(hidden_size)
    norm_plus_one: bool = False  # RMSNorm multiplies by (1 + scale)
    post_norms: bool = False  # RMSNorm after attention and after the MLP as well
    attn_softcap: float | None = None
    final_softcap: float | None = None
    query_scale: float | None = None
    family: str = "llama"  # llama | mistral | qwen2 | gemma2: names of weights in files

    @property
    def scale(self) -> float:
        """The factor on query-key products."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale


REMATS = ("none", "dots", "full")
KEPT = "kept"  # what `Compute.remat` "dots" keeps goes by this name


@dataclass(frozen=True)
class Compute:
    """How a decoder is computed.

    `remat`: what the backward pass keeps of a layer. none: everything it needs; dots: the results
    of matrix products and of attention, from which the rest is cheaply made again; full: the
    layer's input alone.
    """

    dtype: jnp.dtype = jnp.float32
    remat: str = "dots"
