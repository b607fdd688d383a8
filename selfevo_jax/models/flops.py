"""Floating-point operations of a training step, from the model's shape alone.

A multiplication and an addition count as two, as everywhere. Only matrix products are counted:
norms, rotations and softmax are below one in a hundred at the widths of real models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.lora import LoraConfig, target_shapes

# Dense bf16 peaks of one device in FLOP/s, from the makers' data sheets, by `device_kind`.
PEAKS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12,
    "TPU v6 lite": 918e12, "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12,
}  # fmt: skip


def forward_flops(
    config: ModelConfig, tokens: float, targets: float, keys: float | None = None
) -> float:
    """A forward pass over `tokens`, the head at `targets` of them. `keys`: places each query is
    multiplied with (None: half of the tokens, a causal sequence)."""
    layers = tokens * (_kernels(config) + _attention(config, tokens / 2 if keys is None else keys))
    return config.num_layers * layers + 2 * targets * config.hidden_size * config.vocab_size


def train_flops(
    config: ModelConfig,
    tokens: float,
    targets: float,
    *,
    lora: LoraConfig | None,
    keys: float | None = None,
    recompute: bool = False,
) -> float:
    """Forward and backward pass of a step, `tokens`, `targets` and `keys` as in `forward_flops`.

    With a frozen base the kernels' own gradients are not computed. `recompute` counts what this
    implementation does in float32 (attention scores and kernels with their adapter are made
    twice, so is the head where it is trained): the machine's work, while MFU asks for the other.
    """
    keys = tokens / 2 if keys is None else keys
    kernels = _kernels(config) * (3 if lora is None else 2)
    attention = _attention(config, keys) * (3.5 if recompute else 3)
    layers = config.num_layers * tokens * (kernels + attention)
    head = 2 * targets * config.hidden_size * config.vocab_size
    if lora is None:
        return layers + head * (4 if recompute else 3)
    if recompute:
        return layers + 2 * head + 2 * tokens * _adapter(config, lora) + 2 * _sums(config, lora)
    return layers + 2 * head + 3 * tokens * _adapter(config, lora)


def mfu(flops: float, seconds: float, kinds: Sequence[str]) -> float | None:
    """Share of the bf16 peak of devices of these kinds; None for one whose peak is not listed."""
    peak = peak_of(kinds[0])
    return None if peak is None else flops / (seconds * len(kinds) * peak)


def peak_of(kind: str) -> float | None:
    """The peak of a kind of device: that of the longest name it begins with.

    "TPU v5 lite" is no "TPU v5", and "NVIDIA A100-SXM4-80GB" is an A100.
    """
    found = [name for name in PEAKS if re.match(rf"{re.escape(name)}(?![A-Za-z0-9])", kind)]
    return PEAKS[max(found, key=len)] if found else None


def _kernels(config: ModelConfig) -> float:
    """The seven kernels of a layer, per token."""
    inner = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return 2.0 * config.hidden_size * (inner + 3 * config.intermediate_size)


def _attention(config: ModelConfig, keys: float) -> float:
    """Scores and their weighted sum in a layer, per token."""
    return 4.0 * config.num_heads * config.head_dim * keys


@functools.cache
def _adapter(config: ModelConfig, lora: LoraConfig) -> float:
    """The low-rank products of all layers, per token."""
    shapes = target_shapes(config, lora).values()
    return sum(2.0 * layers * lora.rank * (w_in + w_out) for layers, w_in, w_out in shapes)


@functools.cache
def _sums(config: ModelConfig, lora: LoraConfig) -> float:
    """Putting together every kernel with its low-rank product (`models.projection`)."""
    shapes = target_shapes(config, lora).values()
    return sum(2.0 * layers * (lora.rank + 1) * w_in * w_out for layers, w_in, w_out in shapes)
