"""Sentence embeddings from a policy: hidden states averaged over the tokens of a text.

The last hidden states of a decoder, averaged over real tokens only (padding never counts) and
scaled to length one: cosine similarity is then a dot product.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from selfevo_jax.models.attention import Layout
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import forward
from selfevo_jax.models.lora import Adapter
from selfevo_jax.text.tokenizer import Tokenizer

CHUNK = 8  # texts that are embedded together
STEP = 64  # lengths are rounded up to powers of two from here on


def embed_texts(
    config: ModelConfig,
    params: dict,
    adapter: Adapter | None,
    compute: Compute,
    tokenizer: Tokenizer,
    texts: list[str],
    max_length: int,
) -> np.ndarray:
    """Unit vectors, float32 [n, d], of at most `CHUNK` texts; of a longer text its first tokens."""
    ids = [tokenizer.encode(text)[:max_length] or [tokenizer.pad_id] for text in texts]
    longest = max(map(len, ids))
    width = STEP
    while width < longest:
        width *= 2
    tokens_bt = np.zeros((CHUNK, width), np.int32)
    valid_bt = np.zeros((CHUNK, width), np.bool_)
    for row, text in enumerate(ids):
        tokens_bt[row, : len(text)] = text
        valid_bt[row, : len(text)] = True
    pooled_bd = _pooled(config, params, adapter, tokens_bt, valid_bt, compute)
    return np.asarray(pooled_bd)[: len(texts)]


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _pooled(config, params, adapter, tokens_bt, valid_bt, compute) -> jax.Array:
    layout = Layout.plain(valid_bt)
    hidden_btd = forward(config, params, tokens_bt, layout, compute=compute, adapter=adapter)
    weight_bt1 = valid_bt[:, :, None].astype(jnp.float32)
    mean_bd = (hidden_btd.astype(jnp.float32) * weight_bt1).sum(1) / jnp.maximum(
        weight_bt1.sum(1), 1
    )
    return mean_bd / jnp.maximum(jnp.linalg.norm(mean_bd, axis=-1, keepdims=True), 1e-9)
