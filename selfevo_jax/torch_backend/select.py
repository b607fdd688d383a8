"""Choosing the next token of every row; the rules are those of `sample.protocol.SamplingParams`.

One uniform number per token, made from the request's seed and the token's place, picks a token
by the inverse of the cumulative distribution: a draw depends on neither batch nor device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from selfevo_jax.sample.device import Rows
from selfevo_jax.sample.select import Rules


def uniforms(rows: Rows, count_b: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), float64 [b], for token `count_b[b]` of each row."""
    seeds = [int(high) << 32 | int(low) for high, low in rows.seeds_b2]
    return np.array(
        [
            np.random.Generator(np.random.Philox(key=seed, counter=int(count))).random()
            for seed, count in zip(seeds, count_b, strict=True)
        ]
    )


def next_tokens(scores_bv: Tensor, rules: Rules, uniform_b: np.ndarray) -> Tensor:
    """One token a row, int64 [b]. Temperature 0 takes the largest score."""
    device = scores_bv.device
    heat_b, top_p_b, min_p_b = (
        torch.tensor(x, device=device) for x in (rules.temperature_b, rules.top_p_b, rules.min_p_b)
    )
    top_k_b = torch.tensor(rules.top_k_b, device=device).long()
    best_b1 = scores_bv.max(-1, keepdim=True).values
    greedy_b1 = (heat_b == 0)[:, None]
    scaled_bv = (scores_bv - best_b1) / torch.where(greedy_b1, 1.0, heat_b[:, None])
    floor_b1 = min_p_b.log()[:, None]
    if (rules.top_k_b > 0).any() or (rules.top_p_b < 1).any():
        floor_b1 = torch.maximum(floor_b1, _threshold(scaled_bv, top_k_b, top_p_b)[:, None])
    weight_bv = torch.where(scaled_bv >= floor_b1, scaled_bv.exp(), 0).double()
    sums_bv = weight_bv.cumsum(-1)
    total_b1 = sums_bv[:, -1:]
    aim_b1 = torch.tensor(uniform_b, device=device)[:, None] * total_b1
    below_b1 = torch.nextafter(total_b1, torch.zeros_like(total_b1))
    drawn_b1 = torch.searchsorted(sums_bv, torch.minimum(aim_b1, below_b1), right=True)
    return torch.where(greedy_b1, scores_bv.argmax(-1, keepdim=True), drawn_b1)[:, 0]


def _threshold(scaled_bv: Tensor, top_k_b: Tensor, top_p_b: Tensor) -> Tensor:
    """The smallest value [b] that top-k, and then top-p of what it leaves, keep; ties are kept."""
    sorted_bv = scaled_bv.sort(-1, descending=True).values
    vocab = sorted_bv.shape[1]
    limit_b1 = torch.where(top_k_b > 0, top_k_b.clamp(max=vocab), vocab)[:, None]
    within_bv = sorted_bv >= sorted_bv.gather(1, limit_b1 - 1)
    weight_bv = torch.where(within_bv, sorted_bv.exp(), 0).double()
    before_bv = weight_bv.cumsum(-1) - weight_bv
    share_b1 = top_p_b[:, None].double()
    inside_bv = before_bv < share_b1 * weight_bv.sum(-1, keepdim=True)
    kept_bv = within_bv & (inside_bv | (share_b1 >= 1))
    kept_bv[:, 0] = True
    return torch.where(kept_bv, sorted_bv, torch.inf).min(-1).values


def penalised(scores_bv: Tensor, seen_bv: np.ndarray, penalty_b: np.ndarray) -> Tensor:
    """Scores of tokens already seen made less likely."""
    device = scores_bv.device
    penalty_b1 = torch.tensor(penalty_b, device=device)[:, None]
    lower_bv = torch.where(scores_bv > 0, scores_bv / penalty_b1, scores_bv * penalty_b1)
    return torch.where(torch.tensor(seen_bv, device=device), lower_bv, scores_bv)
