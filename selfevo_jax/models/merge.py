"""One adapter from several: laid side by side, or merged factor by factor.

    cat          the exact sum of the low-rank products; the ranks add up
    linear       weighted sum of the factors (`task arithmetic`, Ilharco et al., 2022)
    ties         keep the largest share of each, elect a sign, mean of those that agree
                 (Yadav et al., 2023, arXiv:2306.01708)
    dare_linear, dare_ties   as above after dropping values at random and scaling up the rest
                 (Yu et al., 2023, arXiv:2311.03099)

All but `cat` work on `a` and on `b` apart, as PEFT's `add_weighted_adapter` does, with the weight
and the adapter's scaling split evenly (square root) between the two. The result has scaling 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from selfevo_jax.errors import UserError
from selfevo_jax.models.lora import LoraConfig

METHODS = ("cat", "linear", "ties", "dare_linear", "dare_ties")


@dataclass(frozen=True)
class Part:
    """An adapter to merge: its tree, its shape, its weight, and its name in the lineage."""

    params: dict
    lora: LoraConfig
    weight: float = 1.0
    name: str = ""


def merge_adapters(
    parts: Sequence[Part], method: str, *, density: float = 0.2, seed: int = 0
) -> tuple[dict, LoraConfig, dict[str, Any]]:
    """(tree, its LoraConfig, lineage) of the merged adapter.

    density  share of values kept by `ties` and the `dare_` methods
    seed     of the values that the `dare_` methods drop

    The lineage says what was merged, how, and with which weights, as plain JSON values. Raises
    UserError for an unknown method, a density outside (0, 1], adapters of different modules, or
    different ranks where the method needs equal ones.
    """
    _check(parts, method, density)
    flats = [flatten_dict(part.params) for part in parts]
    merged = {}
    for index, path in enumerate(sorted(flats[0])):
        factors = [flat[path].astype(jnp.float32) for flat in flats]
        if method == "cat":
            merged[path] = _side_by_side(parts, factors, path[-1])
        else:
            key = jax.random.fold_in(jax.random.key(seed), index)
            merged[path] = _merge(parts, factors, path[-1], method, density, key)
    rank = sum(part.lora.rank for part in parts) if method == "cat" else parts[0].lora.rank
    lora = dataclasses.replace(parts[0].lora, rank=rank, alpha=float(rank), rslora=False)
    return unflatten_dict(merged), lora, _lineage(parts, method, density, seed)


def dropout_masks(key: jax.Array, count: int, shape: tuple[int, ...], density: float) -> jax.Array:
    """The values that DARE keeps of `count` factors of one place: bool [count, *shape]."""
    return jax.random.bernoulli(key, density, (count, *shape))


def _check(parts: Sequence[Part], method: str, density: float) -> None:
    if method not in METHODS:
        raise UserError(f"merge method {method!r} is unknown; use one of {', '.join(METHODS)}")
    if not parts:
        raise UserError("there are no adapters to merge: give at least one")
    if not 0 < density <= 1:
        raise UserError(f"merge density is {density}: it is a share, above 0 and up to 1")
    if any(flatten_dict(p.params).keys() != flatten_dict(parts[0].params).keys() for p in parts):
        raise UserError("the adapters to merge are on different modules; their targets must agree")
    ranks = sorted({part.lora.rank for part in parts})
    if method != "cat" and len(ranks) > 1:
        raise UserError(f"{method} needs adapters of one rank, these have {ranks}; use cat")


def _side_by_side(parts, factors, side):
    if side == "a":
        scaled = [f * (p.weight * p.lora.scaling) for p, f in zip(parts, factors, strict=True)]
        return jnp.concatenate(scaled, axis=2)
    return jnp.concatenate(factors, axis=1)


def _merge(parts, factors, side, method, density, key):
    stacked_plio = jnp.stack(factors)
    if method.startswith("dare"):
        kept = dropout_masks(key, len(factors), factors[0].shape, density)
        stacked_plio = jnp.where(kept, stacked_plio / density, 0)
    elif method == "ties":
        stacked_plio = jax.vmap(jax.vmap(lambda x: _largest(x, density)))(stacked_plio)
    shares = jnp.array([_share(part, side) for part in parts])[:, None, None, None]
    if method.endswith("linear"):
        return jnp.sum(shares * stacked_plio, axis=0)
    elected_lio = jnp.where(jnp.sum(stacked_plio, axis=0) >= 0, 1.0, -1.0)
    agree_plio = jnp.sign(stacked_plio) == elected_lio
    summed_lio = jnp.sum(jnp.where(agree_plio, shares * stacked_plio, 0), axis=0)
    return summed_lio / jnp.maximum(jnp.sum(agree_plio, axis=0), 1)


def _share(part: Part, side: str) -> float:
    """The square root of weight times scaling; the sign goes to `a` alone."""
    whole = part.weight * part.lora.scaling
    return math.sqrt(abs(whole)) * (math.copysign(1.0, whole) if side == "a" else 1.0)


def _largest(x_io: jax.Array, density: float) -> jax.Array:
    """`x` with all but its int(density * size) largest magnitudes set to zero."""
    _, places = jax.lax.top_k(jnp.abs(x_io).ravel(), int(density * x_io.size))
    kept = jnp.zeros(x_io.size, bool).at[places].set(True)
    return jnp.where(kept.reshape(x_io.shape), x_io, 0)


def _lineage(parts, method, density, seed) -> dict[str, Any]:
    settings = {} if method in ("cat", "linear") else {"density": density}
    if method.startswith("dare"):
        settings["seed"] = seed
    adapters = [{"name": part.name, "weight": part.weight} for part in parts]
    return {"method": method, **settings, "adapters": adapters}
