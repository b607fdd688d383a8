"""Log-probs of listed targets from hidden states, without ever making [tokens, vocab].

Hidden states are gathered where something is predicted, and the head runs over a chunk of
targets at a time. With a frozen head, d logp / d hidden = W (onehot - softmax) is made in the
forward pass while the chunk's logits are at hand, so the backward pass needs no head at all.
With a trained head, each chunk is recomputed in the backward pass instead.

Axes: b row, m target, c target of a chunk, d model, v vocab, e example slot, k completion.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from selfevo_jax.learn.batches import MicroBatch
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import forward, logits
from selfevo_jax.models.lora import Adapter
from selfevo_jax.parallel.mesh import constrain_parts, sequence_parts

DEFAULT_CHUNK = 128


def sequence_sums(
    config: ModelConfig,
    params: dict,
    adapter: Adapter | None,
    batch: MicroBatch,
    *,
    compute: Compute = Compute(),
    dropout_key: jax.Array | None = None,
    train_head: bool = False,
    chunk: int = DEFAULT_CHUNK,
) -> jax.Array:
    """Weighted log-prob sums of every sequence of a micro-batch, float32 [b, e, k].

    Differentiable in `adapter`, and in `params` when `train_head` is set (without it, no
    gradient reaches the head).
    """
    layout = Layout(batch.positions_bt, batch.segments_bt, batch.branches_bt, batch.reach)
    hidden_btd = forward(
        config, params, batch.tokens_bt, layout,
        compute=compute, adapter=adapter, dropout_key=dropout_key,
    )  # fmt: skip
    hidden_bmd = jnp.take_along_axis(hidden_btd, batch.predict_from_bm[:, :, None], axis=1)
    logps_bm = target_logps(
        config,
        params,
        hidden_bmd,
        batch.targets_bm,
        batch.weights_bm > 0,
        train_head=train_head,
        chunk=chunk,
    )
    return _sum_by_sequence(logps_bm * batch.weights_bm, batch.sequences_bm, batch.counts_bek.shape)


def target_logps(
    config: ModelConfig,
    params: dict,
    hidden_bmd: jax.Array,
    targets_bm: jax.Array,
    listed_bm: jax.Array,
    *,
    train_head: bool = False,
    chunk: int = DEFAULT_CHUNK,
) -> jax.Array:
    """log softmax(head(hidden))[target], float32 [b, m]; where `listed_bm` is False the value is
    finite and meaningless. At most [b, chunk, vocab] logits exist at a time."""
    shape = targets_bm.shape
    hidden_bmd, targets_bm, listed_bm = (
        _in_parts(x, chunk) for x in (hidden_bmd, targets_bm, listed_bm)
    )
    head = {name: params[name] for name in ("embed_tokens", "lm_head") if name in params}
    if train_head:
        logps_bm = _trained(config, chunk, head, hidden_bmd, targets_bm)
    else:
        logps_bm = _frozen(
            config, chunk, jax.lax.stop_gradient(head), hidden_bmd, targets_bm, listed_bm
        )
    return logps_bm.reshape(shape[0], -1)[:, : shape[1]]


def _in_parts(x_bm, chunk):
    """Rows filled up to whole chunks. Where a row is spread over chips, each part of it becomes a
    row of its own, so that these chips share the work of the head."""
    parts, rows = sequence_parts(), x_bm.shape[0]
    end = -x_bm.shape[1] % (chunk * parts)
    x_bm = jnp.pad(x_bm, ((0, 0), (0, end), *((0, 0),) * (x_bm.ndim - 2)))
    if parts == 1:
        return x_bm
    return constrain_parts(x_bm.reshape(rows * parts, -1, *x_bm.shape[2:]))


def _chunk_logps(config, head, hidden_bcd, targets_bc):
    """Log-probs [b, c] of one chunk."""
    log_probs_bcv = jax.nn.log_softmax(logits(config, head, hidden_bcd))
    return jnp.take_along_axis(log_probs_bcv, targets_bc[:, :, None], axis=-1)[..., 0]


def _trained(config, chunk, head, hidden_bmd, targets_bm):
    """Scan over chunks, each recomputed in the backward pass; differentiable in `head` too."""

    @jax.checkpoint
    def body(_, inputs):
        return None, _chunk_logps(config, head, *inputs)

    chunks = (_split(hidden_bmd, chunk), _split(targets_bm, chunk))
    return _join(jax.lax.scan(body, None, chunks)[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _frozen(config, chunk, head, hidden_bmd, targets_bm, listed_bm):
    count = _used_chunks(listed_bm, chunk)

    def body(index, logps_bm):
        hidden_bcd, targets_bc = (_take(x, index, chunk) for x in (hidden_bmd, targets_bm))
        return _put(logps_bm, _chunk_logps(config, head, hidden_bcd, targets_bc), index, chunk)

    return jax.lax.fori_loop(0, count, body, jnp.zeros(targets_bm.shape, jnp.float32))


def _frozen_forward(config, chunk, head, hidden_bmd, targets_bm, listed_bm):
    """Log-probs, and for each target its gradient in the hidden state that predicts it."""

    def body(index, carry):
        logps_bm, slopes_bmd = carry
        hidden_bcd, targets_bc = (_take(x, index, chunk) for x in (hidden_bmd, targets_bm))
        logps_bc, slopes_bcd = _chunk_slopes(config, head, hidden_bcd, targets_bc)
        return _put(logps_bm, logps_bc, index, chunk), _put(slopes_bmd, slopes_bcd, index, chunk)

    start = (jnp.zeros(targets_bm.shape, jnp.float32), jnp.zeros_like(hidden_bmd))
    return jax.lax.fori_loop(0, _used_chunks(listed_bm, chunk), body, start)


def _frozen_backward(config, chunk, slopes_bmd, cotangent_bm):
    return None, (slopes_bmd * cotangent_bm[:, :, None]).astype(slopes_bmd.dtype), None, None


_frozen.defvjp(_frozen_forward, _frozen_backward)


def _chunk_slopes(config, head, hidden_bcd, targets_bc):
    """(logps [b, c], d logp / d hidden [b, c, d]) of one chunk.

    With z the logits, f = 1 - (z / cap)^2 the slope of the soft cap (1 without), d logp / d z =
    (onehot - softmax(z)) f; the one-hot part is a row of the head, so it is looked up.
    """
    scores_bcv = logits(config, head, hidden_bcd)
    norm_bc = jax.nn.logsumexp(scores_bcv, axis=-1)
    chosen_bc = jnp.take_along_axis(scores_bcv, targets_bc[:, :, None], axis=-1)[..., 0]
    weights_bcv = jnp.exp(scores_bcv - norm_bc[:, :, None])
    rows_bcd = _head_rows(head, targets_bc)
    if config.final_softcap is not None:
        weights_bcv *= 1 - (scores_bcv / config.final_softcap) ** 2
        rows_bcd *= 1 - (chosen_bc / config.final_softcap)[:, :, None] ** 2
    mean_bcd = _through_head(head, weights_bcv.astype(hidden_bcd.dtype))
    return chosen_bc - norm_bc, rows_bcd - mean_bcd


def _head_rows(head, targets_bc):
    """The head's columns for these targets, float32 [b, c, d]."""
    if "lm_head" in head:
        columns_dbc = jnp.take(head["lm_head"]["kernel"], targets_bc, axis=1)
        return jnp.moveaxis(columns_dbc, 0, -1).astype(jnp.float32)
    return jnp.take(head["embed_tokens"]["embedding"], targets_bc, axis=0).astype(jnp.float32)


def _through_head(head, weights_bcv):
    """`weights` [b, c, v] times the transposed head, float32 [b, c, d]."""
    tied = "lm_head" not in head
    table = head["embed_tokens"]["embedding"] if tied else head["lm_head"]["kernel"]
    form = "bcv,vd->bcd" if tied else "bcv,dv->bcd"
    return jnp.einsum(
        form, weights_bcv, table.astype(weights_bcv.dtype), preferred_element_type=jnp.float32
    )


def _used_chunks(listed_bm, chunk):
    """Chunks up to the last listed target: rows are filled from the front."""
    last = jnp.max(jnp.where(listed_bm, jnp.arange(1, listed_bm.shape[1] + 1), 0))
    return (last + chunk - 1) // chunk


def _take(x_bm, index, chunk):
    return jax.lax.dynamic_slice_in_dim(x_bm, index * chunk, chunk, axis=1)


def _put(x_bm, part_bc, index, chunk):
    return jax.lax.dynamic_update_slice_in_dim(
        x_bm, part_bc.astype(x_bm.dtype), index * chunk, axis=1
    )


def _split(x_bm, chunk):
    """[b, m, ...] -> [m / chunk, b, chunk, ...]."""
    return jnp.moveaxis(x_bm.reshape(x_bm.shape[0], -1, chunk, *x_bm.shape[2:]), 1, 0)


def _join(x_nbc):
    return jnp.moveaxis(x_nbc, 0, 1).reshape(x_nbc.shape[1], -1)


def _sum_by_sequence(values_bm, sequences_bm, shape):
    """Adds up each row's values by sequence number: [b, m] -> `shape` [b, e, k]."""
    count = shape[1] * shape[2]
    sums_bs = jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, num_segments=count))(
        values_bm, sequences_bm
    )
    return sums_bs.reshape(shape)
