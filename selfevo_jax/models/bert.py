"""BERT, the encoder that turns sentences into vectors (Devlin et al., 2019, arXiv:1810.04805).

    forward   tokens -> hidden states; every token sees every real token of its row

Each layer norms what it has added ("post-LN"); the feed-forward is ungated, with the exact GELU;
positions are learned. A text is one sentence to it, so the token type is always the first.
Parameters are plain nested dicts (names and shapes: `weights.names.leaves`), layers stacked on the
first axis. All of it is float32 at the highest precision of the device: it is small beside any
decoder, and the votes it decides should not depend on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class BertConfig:
    """Architecture of an encoder: every number that changes what it computes."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_position: int
    token_types: int = 2
    norm_eps: float = 1e-12
    family: str = "bert"


def forward(
    config: BertConfig, params: dict, tokens_bt: jax.Array, valid_bt: jax.Array
) -> jax.Array:
    """Hidden states [b, t, d] of rows of at most `max_position` tokens; those where `valid_bt` is
    False are padding, which no token sees."""

    def layer(x_btd: jax.Array, weights: dict) -> tuple[jax.Array, None]:
        mixed_btd = _attention(config, weights["attn"], x_btd, valid_bt)
        x_btd = _norm(config, weights["attn_norm"], x_btd + mixed_btd)
        return _norm(config, weights["mlp_norm"], x_btd + _mlp(weights["mlp"], x_btd)), None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(layer, _embedded(config, params, tokens_bt), params["layers"])[0]


def _embedded(config: BertConfig, params: dict, tokens_bt: jax.Array) -> jax.Array:
    """The normed sum of a token's own vector, its position's and the first type's."""
    words_btd = params["embed_tokens"]["embedding"][tokens_bt]
    places_td = params["embed_positions"]["embedding"][: tokens_bt.shape[1]]
    kind_d = params["embed_types"]["embedding"][0]
    return _norm(config, params["embed_norm"], words_btd + places_td + kind_d)


def _attention(
    config: BertConfig, weights: dict, x_btd: jax.Array, valid_bt: jax.Array
) -> jax.Array:
    def heads(name: str) -> jax.Array:
        return _linear(weights[name], x_btd).reshape(*x_btd.shape[:2], config.num_heads, -1)

    query_btnh, key_bsnh, value_bsnh = heads("q_proj"), heads("k_proj"), heads("v_proj")
    scores_bnts = jnp.einsum("btnh,bsnh->bnts", query_btnh, key_bsnh)
    scores_bnts /= query_btnh.shape[-1] ** 0.5
    hidden = jnp.finfo(scores_bnts.dtype).min  # finite: a row of padding alone stays a number
    share_bnts = jax.nn.softmax(jnp.where(valid_bt[:, None, None], scores_bnts, hidden), axis=-1)
    mixed_btnh = jnp.einsum("bnts,bsnh->btnh", share_bnts, value_bsnh)
    return _linear(weights["o_proj"], mixed_btnh.reshape(x_btd.shape))


def _mlp(weights: dict, x_btd: jax.Array) -> jax.Array:
    inner_btf = jax.nn.gelu(_linear(weights["up_proj"], x_btd), approximate=False)
    return _linear(weights["down_proj"], inner_btf)


def _linear(weights: dict, x_bti: jax.Array) -> jax.Array:
    return x_bti @ weights["kernel"] + weights["bias"]


def _norm(config: BertConfig, weights: dict, x_btd: jax.Array) -> jax.Array:
    """Layer norm (Ba et al., 2016, arXiv:1607.06450)."""
    centred_btd = x_btd - x_btd.mean(-1, keepdims=True)
    variance_bt1 = (centred_btd**2).mean(-1, keepdims=True)
    unit_btd = centred_btd * jax.lax.rsqrt(variance_bt1 + config.norm_eps)
    return unit_btd * weights["scale"] + weights["bias"]
