"""Choosing the next token of every row, and what its log-probability was.

Cutting (top-k, top-p, min-p) never sorts the vocabulary: all three keep the tokens whose
logit reaches a row's threshold. The threshold comes from the `PREFILTER` largest logits
(`lax.top_k`), which is exact when the kept set lies among them; for rows where it does not, a
bisection over the bits of the threshold finds it exactly. Equal logits at the threshold are
all kept.

Drawing is the Gumbel-max trick in two levels: first one of `BLOCKS` groups of tokens by its
total weight, then a token in the group. It draws from the same distribution as one Gumbel
variable per token and needs some hundred random numbers a row instead of one per token.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

PREFILTER = 128
BLOCKS = 128


@flax.struct.dataclass
class Rules:
    """Per-row sampling rules, arrays [b]; see `protocol.SamplingParams`."""

    temperature_b: jax.Array
    top_k_b: jax.Array
    top_p_b: jax.Array
    min_p_b: jax.Array


def row_keys(seeds_b2: jax.Array, index_b: jax.Array) -> jax.Array:
    """The random key of token `index_b` of each row; `seeds_b2` is uint32 (high, low) words."""
    keys_b = jax.random.wrap_key_data(seeds_b2, impl="threefry2x32")
    return jax.vmap(jax.random.fold_in)(keys_b, index_b)


def next_tokens(
    logits_bv: jax.Array, rules: Rules, keys_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token a row: (tokens int32 [b], log-probs float32 [b]).

    The log-probability is that of the whole softmax of the logits as they are: neither
    temperature nor cuts enter it. Temperature 0 takes the largest logit.
    """
    greedy_b = rules.temperature_b == 0
    heat_b = jnp.where(greedy_b, 1.0, rules.temperature_b)
    blocks_bnj = _blocks(logits_bv)
    top_bj = blocks_bnj.max(1)
    top_b = top_bj.max(-1)
    scaled_bnj = (blocks_bnj - top_b[:, None, None]) / heat_b[:, None, None]
    floor_b = _threshold(scaled_bnj, rules)
    weight_bj = _kept_weight(scaled_bnj, floor_b).sum(1)

    gumbel_bg = _gumbel(keys_b, sum(blocks_bnj.shape[1:]))
    group_bj = jnp.where(greedy_b[:, None], top_bj, jnp.log(weight_bj) + gumbel_bg[:, :BLOCKS])
    group_b = jnp.argmax(group_bj, -1)
    member_bn = jnp.take_along_axis(blocks_bnj, group_b[:, None, None], 2)[:, :, 0]
    scaled_bn = (member_bn - top_b[:, None]) / heat_b[:, None]
    drawn_bn = jnp.where(scaled_bn >= floor_b[:, None], scaled_bn + gumbel_bg[:, BLOCKS:], -jnp.inf)
    place_b = jnp.argmax(jnp.where(greedy_b[:, None], member_bn, drawn_bn), -1)

    logit_b = jnp.take_along_axis(member_bn, place_b[:, None], 1)[:, 0]
    total_b = jnp.exp(blocks_bnj - top_b[:, None, None]).sum(1).sum(-1)
    return (place_b * BLOCKS + group_b).astype(jnp.int32), logit_b - top_b - jnp.log(total_b)


def penalised(logits_bv: jax.Array, seen_bv: jax.Array, penalty_b: jax.Array) -> jax.Array:
    """Logits of tokens already seen made less likely; see `SamplingParams.repetition_penalty`."""
    penalty_b1 = penalty_b[:, None]
    lower_bv = jnp.where(logits_bv > 0, logits_bv / penalty_b1, logits_bv * penalty_b1)
    return jnp.where(seen_bv, lower_bv, logits_bv)


def log_softmax_at(logits_bv: jax.Array, token_b: jax.Array) -> jax.Array:
    """The log-probability [b] of one token a row."""
    logit_b = jnp.take_along_axis(logits_bv, token_b[:, None], 1)[:, 0]
    return logit_b - jax.nn.logsumexp(logits_bv, axis=-1)


@flax.struct.dataclass
class Around:
    """What else a place held: `top_bk` of `logps_bk`, entropy and margin [b] of its softmax."""

    top_bk: jax.Array
    logps_bk: jax.Array
    entropy_b: jax.Array
    margin_b: jax.Array


def around(logits_bv: jax.Array, top: int) -> Around:
    """The `top` >= 2 likeliest tokens, and the spread of the whole softmax (in nats)."""
    logps_bv = jax.nn.log_softmax(logits_bv, axis=-1)
    logps_bk, top_bk = jax.lax.top_k(logps_bv, top)
    entropy_b = -(jnp.exp(logps_bv) * logps_bv).sum(-1)
    first_b, second_b = jnp.exp(logps_bk[:, 0]), jnp.exp(logps_bk[:, 1])
    return Around(top_bk, logps_bk, entropy_b, first_b - second_b)


def _blocks(logits_bv: jax.Array) -> jax.Array:
    """[b, n, j]: group j holds tokens j, j + BLOCKS, ...; reductions over n are contiguous."""
    rows, vocab = logits_bv.shape
    padded_bv = jnp.pad(logits_bv, ((0, 0), (0, -vocab % BLOCKS)), constant_values=-jnp.inf)
    return padded_bv.reshape(rows, -1, BLOCKS)


def _gumbel(keys_b: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.gumbel(key, (count,), mode="high"))(keys_b)


def _kept_weight(scaled_bnj: jax.Array, floor_b: jax.Array) -> jax.Array:
    return jnp.where(scaled_bnj >= floor_b[:, None, None], jnp.exp(scaled_bnj), 0.0)


def _threshold(scaled_bnj: jax.Array, rules: Rules) -> jax.Array:
    """The smallest kept value of each row of scaled logits (0 is the row's largest)."""
    floor_b = jnp.log(rules.min_p_b)
    cuts_b = (rules.temperature_b > 0) & ((rules.top_k_b > 0) | (rules.top_p_b < 1))
    flat_bv = scaled_bnj.reshape(scaled_bnj.shape[0], -1)

    def cut() -> jax.Array:
        fast_b, found_b = _prefiltered(flat_bv, rules)
        missing_b = cuts_b & ~found_b
        slow = jax.lax.cond(missing_b.any(), _bisected, lambda *_: fast_b, flat_bv, rules)
        exact_b = jnp.where(found_b, fast_b, slow)
        return jnp.where(cuts_b, jnp.maximum(floor_b, exact_b), floor_b)

    return jax.lax.cond(cuts_b.any(), cut, lambda: floor_b)


def _prefiltered(scaled_bv: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array]:
    """(threshold, whether it is exact) of each row, from its largest values alone."""
    count = min(PREFILTER, scaled_bv.shape[1])
    top_bc = jax.lax.top_k(scaled_bv, count)[0]
    limit_b1 = jnp.where(rules.top_k_b > 0, rules.top_k_b, scaled_bv.shape[1])[:, None]
    kth_b1 = jnp.take_along_axis(top_bc, jnp.minimum(limit_b1, count) - 1, 1)
    within_bc = (top_bc >= kth_b1) | (limit_b1 > count)
    weight_bc = jnp.where(within_bc, jnp.exp(top_bc), 0.0)
    mass_b1 = jnp.where(
        limit_b1 > count,
        jnp.exp(scaled_bv).sum(-1, keepdims=True),
        weight_bc.sum(-1, keepdims=True),
    )
    before_bc = jnp.cumsum(weight_bc, -1) - weight_bc
    open_b1 = (rules.top_p_b >= 1)[:, None]
    kept_bc = within_bc & (open_b1 | (before_bc < rules.top_p_b[:, None] * mass_b1))
    kept_bc = kept_bc.at[:, 0].set(True)
    floor_b = jnp.where(kept_bc, top_bc, jnp.inf).min(-1)
    # A top-k larger than the prefilter changes the mass that top-p shares out.
    found_b = ~kept_bc[:, -1] & ((limit_b1 <= count) | (rules.top_k_b == 0)[:, None])[:, 0]
    return floor_b, found_b | (count == scaled_bv.shape[1])


def _bisected(scaled_bv: jax.Array, rules: Rules) -> jax.Array:
    """Thresholds by bisection: top-k on counts, then top-p on the weight of what is left."""
    vocab = scaled_bv.shape[1]
    ones_bv = jnp.ones_like(scaled_bv)
    enough_b = jnp.where(rules.top_k_b > 0, jnp.minimum(rules.top_k_b, vocab), vocab)
    kth_b = _largest_floor(scaled_bv, ones_bv, enough_b.astype(jnp.float32))
    weight_bv = jnp.where(scaled_bv >= kth_b[:, None], jnp.exp(scaled_bv), 0.0)
    nucleus_b = _largest_floor(scaled_bv, weight_bv, rules.top_p_b * weight_bv.sum(-1))
    return jnp.where(rules.top_p_b < 1, jnp.maximum(kth_b, nucleus_b), kth_b)


def _largest_floor(scaled_bv: jax.Array, weight_bv: jax.Array, enough_b: jax.Array) -> jax.Array:
    """The largest floor per row such that the weight of values >= floor is at least enough.

    Values are <= 0; the bits of a positive float order like the float itself, so 31 halvings
    of the bit pattern of -floor end at the exact value.
    """
    infinity = jnp.full(enough_b.shape, 0x7F800000, jnp.int32)

    def halve(_, bounds):
        low_b, high_b = bounds
        middle_b = low_b + (high_b - low_b) // 2
        floor_b = -jax.lax.bitcast_convert_type(middle_b, jnp.float32)
        weight_b = jnp.where(scaled_bv >= floor_b[:, None], weight_bv, 0.0).sum(-1)
        reached_b = weight_b >= enough_b
        return jnp.where(reached_b, low_b, middle_b + 1), jnp.where(reached_b, middle_b, high_b)

    _, high_b = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(infinity), infinity))
    return -jax.lax.bitcast_convert_type(high_b, jnp.float32)
