"""AdamW, Adafactor and Lion with clipping, from optax, and schedules of their learning rate.

Weight decay acts on kernels and LoRA factors, not on norms and biases. The rate is an argument of
each update, so that one compiled step serves every schedule and every number of steps.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from selfevo_jax.errors import UserError
from selfevo_jax.parallel.rules import path_name

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "adafactor", "lion")


def schedule(name: str, lr: float, steps: int, warmup: float) -> Callable[[Any], Any]:
    """step -> learning rate: linear from 0 over the first `warmup` share of `steps`, then constant,
    linear to 0, or a half cosine to 0. Raises `UserError` for an unknown name or a bad share."""
    if name not in SCHEDULES:
        raise UserError(f"learn.schedule {name!r} is unknown: use one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup < 1:
        raise UserError(f"learn.warmup is {warmup}: it is a share of the steps, 0 up to below 1")
    rising = round(warmup * steps)
    falling = max(steps - rising, 1)
    after = {
        "constant": optax.constant_schedule(lr),
        "linear": optax.linear_schedule(lr, 0.0, falling),
        "cosine": optax.cosine_decay_schedule(lr, falling),
    }[name]
    if not rising:
        return after
    # Step 0 already moves: the ramp runs over 1/n, 2/n, ..., 1.
    ramp = optax.linear_schedule(lr / rising, lr, max(rising - 1, 1))
    return optax.join_schedules([ramp, after], [rising])


@functools.cache  # equal settings give the same object, by which compiled steps are found again
def optimizer(
    name: str, *, weight_decay: float = 0.0, clip: float | None = 1.0
) -> optax.GradientTransformationExtraArgs:
    """One of OPTIMIZERS after clipping to a global norm of `clip` (None: off).

    Its `update(grads, state, params, rate=...)` takes the learning rate of the step.
    AdamW: Loshchilov & Hutter, 2019. Adafactor: Shazeer & Stern, 2018, with its factored second
    moments but our learning rate as it is. Lion: Chen et al., 2023. Decay is decoupled and scaled
    by the rate in all three. Raises UserError for another name.
    """
    if re.fullmatch("adamw?_?8bit", name):
        raise UserError(
            f"learn.optimizer {name}: no maintained JAX library keeps Adam's state in 8 bits; "
            "adafactor's is smaller still, and an adapter's AdamW state is small beside the base"
        )
    if name not in OPTIMIZERS:
        raise UserError(f"learn.optimizer {name!r} is unknown: use one of {', '.join(OPTIMIZERS)}")
    rules = {
        "adamw": (optax.scale_by_adam,),
        "adafactor": (optax.scale_by_factored_rms, lambda: optax.clip_by_block_rms(1.0)),
        "lion": (optax.scale_by_lion,),
    }
    return optax.chain(
        *([] if clip is None else [optax.clip_by_global_norm(clip)]),
        *(make() for make in rules[name]),
        optax.add_decayed_weights(weight_decay, mask=_decayed),
        _scaled_by_rate(),
    )


def _scaled_by_rate() -> optax.GradientTransformationExtraArgs:
    """Updates times minus the rate that the call gives."""

    def update(updates: Any, state: Any, params: Any = None, *, rate: Any, **_: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(-rate, leaf.dtype) * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _decayed(tree: Any) -> Any:
    """True for the leaves that weight decay acts on."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).rsplit("/", 1)[-1] in ("kernel", "embedding", "a", "b"),
        tree,
    )
