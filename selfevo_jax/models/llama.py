"""The decoder: one network for every LLaMA-family model, behind pure functions.

    forward         tokens -> hidden states; layers under `nn.scan`, for training and scoring
    forward_cached  the same layers one after another against a key-value cache, for sampling
    logits          hidden states -> float32 logits

Parameters are plain nested dicts (see `init_params`), layers stacked on the first axis.
Norms, rotary angles, attention scores and logits are float32; the rest is `compute.dtype`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfevo_jax.models import context, cudnn, decode_attention, splash
from selfevo_jax.models.attention import NO_WINDOW, Blocks, Layout, attend, row_mask, visible
from selfevo_jax.models.cache import Cache, attend_cached, stored, widened
from selfevo_jax.models.config import (
    KEPT,
    Compute,
    LinearRopeScaling,
    Llama3RopeScaling,
    ModelConfig,
)
from selfevo_jax.models.projection import KERNEL_INIT, LoraSlice, Projection
from selfevo_jax.parallel.mesh import constrain_batch
from selfevo_jax.parallel.rules import by_feature, gathered

_ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": functools.partial(nn.gelu, approximate=True)}


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (Zhang & Sennrich, 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_btd: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.config.norm_plus_one else nn.initializers.ones
        scale_d = self.param("scale", init, (x_btd.shape[-1],)).astype(jnp.float32)
        if self.config.norm_plus_one:
            scale_d = 1.0 + scale_d
        wide_btd = x_btd.astype(jnp.float32)
        power_bt1 = jnp.mean(wide_btd**2, axis=-1, keepdims=True)
        return (wide_btd * jax.lax.rsqrt(power_bt1 + self.config.norm_eps) * scale_d).astype(
            x_btd.dtype
        )


class Attention(nn.Module):
    """Queries, keys and values with rotary positions; `weigh` turns them into weighted values
    [b, t, n, h], and may have something to hand back."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_btd, rope, lora, weigh):
        cfg = self.config

        def heads(name: str, count: int) -> jax.Array:
            flat_bte = Projection(count * cfg.head_dim, cfg.qkv_bias, name=name)(x_btd, lora)
            return flat_bte.reshape(*flat_bte.shape[:-1], count, cfg.head_dim)

        query_btnh = rotate(heads("q_proj", cfg.num_heads), rope)
        key_btkh = rotate(heads("k_proj", cfg.num_kv_heads), rope)
        mixed_btnh, back = weigh(query_btnh, key_btkh, heads("v_proj", cfg.num_kv_heads))
        mixed_bte = mixed_btnh.reshape(*mixed_btnh.shape[:2], -1)
        return Projection(cfg.hidden_size, name="o_proj")(mixed_bte, lora), back


class Mlp(nn.Module):
    """Gated feed-forward: `down(act(gate(x)) * up(x))` (Shazeer, 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_btd, lora):
        gate_btf = Projection(self.config.intermediate_size, name="gate_proj")(x_btd, lora)
        up_btf = Projection(self.config.intermediate_size, name="up_proj")(x_btd, lora)
        inner_btf = _ACTIVATIONS[self.config.activation](gate_btf) * up_btf
        return Projection(self.config.hidden_size, name="down_proj")(inner_btf, lora)


class Block(nn.Module):
    """One layer: attention and MLP, each normed before (Gemma-2: after as well) and added."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_btd, rope, lora, weigh):
        def after(name: str, y_btd: jax.Array) -> jax.Array:
            return RMSNorm(self.config, name=name)(y_btd) if self.config.post_norms else y_btd

        mixed_btd, back = Attention(self.config, name="attn")(
            RMSNorm(self.config, name="attn_norm")(x_btd), rope, lora, weigh
        )
        x_btd = x_btd + after("attn_post_norm", mixed_btd)
        inner_btd = Mlp(self.config, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x_btd), lora)
        return _between_layers(x_btd + after("mlp_post_norm", inner_btd)), back


class ScanLayer(nn.Module):
    """`Block` in the form `nn.scan` wants; keys are those of the very tokens it is given."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_btd, per_layer, rope, masks, adapter, dropout_key):
        lora_params, layer, kind = per_layer
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, layer)
        # Picked only where there is a choice: what is picked is kept for the backward pass.
        mask = masks[0] if len(masks) == 1 else jax.tree.map(lambda *m: jnp.stack(m)[kind], *masks)
        kernel = _kernel(self.config, x_btd.shape[1], x_btd.dtype) or attend
        weigh = functools.partial(_within_rows, self.config, kernel, mask)
        x_btd, _ = Block(self.config, name="block")(
            x_btd, rope, LoraSlice(adapter, lora_params, key), weigh
        )
        return x_btd, None


class Decoder(nn.Module):
    """Embedding, scanned layers, final norm, and the output head where it is not tied."""

    config: ModelConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tokens_bt, layout, adapter=None, dropout_key=None):
        cfg = self.config
        x_btd = constrain_batch(
            _embed(cfg, Embedding(cfg, name="embed_tokens")(), tokens_bt, self.compute)
        )
        whole = _kernel(cfg, tokens_bt.shape[1], x_btd.dtype) is not None
        masks = tuple(_mask(layout, window, whole) for window in _windows(cfg))
        layers = nn.scan(
            _remat(self.compute.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
        )(cfg, name="layers")
        lora = {} if adapter is None else adapter.params.get("layers", {})
        lora = gathered(jax.tree.map(lambda leaf: leaf.astype(self.compute.dtype), lora))
        per_layer = (lora, jnp.arange(cfg.num_layers), jnp.array(_window_kinds(cfg)))
        settings = None if adapter is None else adapter.replace(params={})
        rope = rope_angles(cfg, layout.positions_bt)
        x_btd, _ = layers(x_btd, per_layer, rope, masks, settings, dropout_key)
        if not cfg.tie_embeddings:
            Head(cfg, name="lm_head")()
        return RMSNorm(cfg, name="final_norm")(x_btd)


class Embedding(nn.Module):
    """The token table [v, d]."""

    config: ModelConfig

    @nn.compact
    def __call__(self):
        return self.param(
            "embedding", KERNEL_INIT, (self.config.vocab_size, self.config.hidden_size)
        )


class Head(nn.Module):
    """The output projection [d, v] of models whose head is not the token table."""

    config: ModelConfig

    @nn.compact
    def __call__(self):
        return self.param("kernel", KERNEL_INIT, (self.config.hidden_size, self.config.vocab_size))


def forward(
    config: ModelConfig,
    params: dict,
    tokens_bt: jax.Array,
    layout: Layout,
    *,
    compute: Compute = Compute(),
    adapter=None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the final norm, [b, t, d] in `compute.dtype`.

    `layout` gives every token its place (packed rows, shared prompts); `adapter` is a
    `models.lora.Adapter`; its dropout acts only when `dropout_key` is given.
    """
    variables = {"params": _nest_layers(params)}
    return Decoder(config, compute).apply(variables, tokens_bt, layout, adapter, dropout_key)


def forward_cached(
    config: ModelConfig,
    params: dict,
    tokens_bt: jax.Array,
    layout: Layout,
    cache: Cache,
    slots_bt: jax.Array,
    *,
    compute: Compute = Compute(),
    adapter=None,
) -> tuple[jax.Array, Cache]:
    """Like `forward`, with keys and values kept: token (b, t) is written to cache slot
    `slots_bt[b, t]` (a slot past the end is dropped) and sees whatever the cache then holds.

    Layers run one after another, so that the cache is updated in place. `params["layers"]`
    may be stacked, or a tuple of one tree per layer (`unstack_layers`), which saves copies.
    """
    places = cache.layout.write(layout, slots_bt)
    masks = [visible(layout, places, window) for window in _windows(config)]
    rope = rope_angles(config, layout.positions_bt)
    x_btd = _between_layers(_embed(config, params["embed_tokens"]["embedding"], tokens_bt, compute))
    keys, values = [], []
    for layer, kind in enumerate(_window_kinds(config)):
        kept = (cache.key_bkhs[layer], cache.value_bksh[layer])
        weigh = functools.partial(_against_cache, config, masks[kind], slots_bt, kept)
        lora = {} if adapter is None else _layer(adapter.params.get("layers", {}), layer)
        x_btd, (key_bkhs, value_bksh) = Block(config).apply(
            {"params": _layer(params["layers"], layer)},
            x_btd, rope, LoraSlice(adapter, lora, None), weigh,
        )  # fmt: skip
        keys.append(key_bkhs)
        values.append(value_bksh)
    hidden_btd = RMSNorm(config).apply({"params": params["final_norm"]}, x_btd)
    return hidden_btd, Cache(tuple(keys), tuple(values), places)


def logits(config: ModelConfig, params: dict, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., v] of hidden states [..., d]."""
    if config.tie_embeddings:
        table_vd = params["embed_tokens"]["embedding"].astype(hidden.dtype)
        scores = jnp.einsum("...d,vd->...v", hidden, table_vd, preferred_element_type=jnp.float32)
    else:
        kernel_dv = params["lm_head"]["kernel"].astype(hidden.dtype)
        scores = jnp.einsum("...d,dv->...v", hidden, kernel_dv, preferred_element_type=jnp.float32)
    cap = config.final_softcap
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def init_params(config: ModelConfig, key: jax.Array, dtype: jnp.dtype = jnp.float32) -> dict:
    """Random parameters: normal(0.02) kernels, norms at identity."""
    tokens_bt = jnp.zeros((1, 1), jnp.int32)
    layout = Layout.plain(jnp.ones((1, 1), bool))
    params = Decoder(config).init(key, tokens_bt, layout)["params"]
    params["layers"] = params["layers"]["block"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_params(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> dict:
    """The shapes and dtype of the parameters, nothing allocated."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


def unstack_layers(params: dict) -> dict:
    """`params` with the stacked layers split into a tuple of one tree per layer (copies them)."""
    stacked = params["layers"]
    count = jax.tree.leaves(stacked)[0].shape[0]
    return {**params, "layers": tuple(_layer(stacked, index) for index in range(count))}


def rope_angles(config: ModelConfig, positions_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin [b, t, 1, h/2] of the rotary angles (Su et al., 2021), in float32."""
    exponents_h = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies_h = _scaled(1.0 / config.rope_theta**exponents_h, config.rope_scaling)
    angles_bth = positions_bt[..., None].astype(jnp.float32) * frequencies_h
    return jnp.cos(angles_bth)[:, :, None], jnp.sin(angles_bth)[:, :, None]


def rotate(x_btnh: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions in the half-split convention: pair (i, i + h/2) turns together."""
    cos, sin = rope
    first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x_btnh.dtype)


def _scaled(frequencies_h, scaling):
    if scaling is None:
        return frequencies_h
    if isinstance(scaling, LinearRopeScaling):
        return frequencies_h / scaling.factor
    return _llama3_scaled(frequencies_h, scaling)


def _llama3_scaled(frequencies_h, scaling: Llama3RopeScaling):
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    turns_h = scaling.original_max_position * frequencies_h / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    blend_h = jnp.clip((turns_h - scaling.low_freq_factor) / span, 0.0, 1.0)
    return blend_h * frequencies_h + (1 - blend_h) * frequencies_h / scaling.factor


def _embed(config, table_vd, tokens_bt, compute):
    x_btd = table_vd[tokens_bt].astype(compute.dtype)
    return (
        x_btd * jnp.asarray(config.hidden_size**0.5, x_btd.dtype)
        if config.scale_embeddings
        else x_btd
    )


def _between_layers(x_btd: jax.Array) -> jax.Array:
    """How activations lie over the mesh.

    Those of one token a row are far smaller than the weights, so that these stay where they are:
    each chip multiplies with its share, and sums are exchanged (Pope et al., 2022,
    arXiv:2211.05102, section 3.2). A CPU's devices share one memory: there rows are left whole, and
    a row's bits are the same on any number of them.
    """
    if x_btd.shape[1] == 1 and context.platform() != "cpu":
        return by_feature(x_btd)
    return constrain_batch(x_btd)


def _windows(config) -> list[int]:
    """The distinct attention windows of a model: at most a sliding and a full one."""
    if config.window is None:
        return [NO_WINDOW]
    return [config.window, NO_WINDOW] if config.alternate_window else [config.window]


def _window_kinds(config) -> list[int]:
    """For every layer, the index of its window in `_windows`."""
    return [layer % 2 if config.alternate_window else 0 for layer in range(config.num_layers)]


def _kernel(config, length: int, dtype) -> Callable[..., jax.Array] | None:
    """Attention over rows of this length as this platform does it best; None: `attend`, by blocks.

    A kernel takes the whole mask.
    """
    if splash.serves(length, length):
        return splash.attend
    if cudnn.serves(config, length, dtype):
        return cudnn.attend
    return context.attend if context.serves(length) else None


def _mask(layout: Layout, window: int, whole: bool) -> jax.Array | Blocks:
    """Who sees whom within rows."""
    return constrain_batch(visible(layout, layout, window)) if whole else row_mask(layout, window)


def _within_rows(config, weigh, mask, query_btnh, key_btkh, value_btkh):
    """Attention among the tokens of a row by `weigh`; `mask` from `_mask`."""
    mixed_btnh = weigh(
        query_btnh, key_btkh.swapaxes(1, 2), value_btkh.swapaxes(1, 2), mask,
        scale=config.scale, softcap=config.attn_softcap,
    )  # fmt: skip
    return mixed_btnh, None


def _against_cache(config, mask_bts, slots_bt, kept, query_btnh, key_btkh, value_btkh):
    """Attention to what a cache holds once the new tokens are in it; hands the cache back."""
    how = {"scale": config.scale, "softcap": config.attn_softcap}
    query_btnh, *new = (widened(x, kept[0].shape[2]) for x in (query_btnh, key_btkh, value_btkh))
    if decode_attention.serves(query_btnh.shape[1]):
        mixed_btnh, kept = decode_attention.attend(
            query_btnh, kept, slots_bt, *new, mask_bts, **how
        )
    else:
        kept = stored(*kept, slots_bt, *new)
        mixed_btnh = attend_cached(query_btnh, *kept, mask_bts, **how)
    return mixed_btnh[..., : config.head_dim], kept


def _layer(layers, index: int):
    if isinstance(layers, tuple):
        return layers[index]
    return jax.tree.map(lambda leaf: leaf[index], layers)


def _nest_layers(params: dict) -> dict:
    return {**params, "layers": {"block": params["layers"]}}


def _remat(policy: str):
    if policy == "none":
        return ScanLayer
    policies = {"dots": jax.checkpoint_policies.save_only_these_names(KEPT), "full": None}
    return nn.remat(ScanLayer, policy=policies[policy], prevent_cse=False)
