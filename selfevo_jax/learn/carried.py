"""The optimiser's state that one fit leaves in a file and the next goes on with.

The file holds the moments and how many steps they remember. The learning rate is no part of it:
every fit has a schedule of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.flax import load_file, save_file

from selfevo_jax.errors import UserError
from selfevo_jax.parallel.distributed import agreed, on_host
from selfevo_jax.parallel.rules import path_name
from selfevo_jax.weights.storage import atomic_file, sha256_of_file

OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class Carried:
    """`before`: the file to go on with, None for a fresh state; `after`: the file to leave."""

    before: Path | None
    after: Path

    def identity(self) -> dict[str, str]:
        """What a fit depends on: nothing, where its state is fresh."""
        return {} if self.before is None else {"optimizer": sha256_of_file(self.before)}


def leave(path: Path, state: Any) -> None:
    """Writes an optax state; of one that is spread over hosts all must call, and host 0 writes."""
    arrays = {name: on_host(leaf) for name, leaf in _named(state).items()}

    def write() -> None:
        with atomic_file(path) as unfinished:
            save_file(arrays, unfinished)

    agreed(write)


def gone_on_with(path: Path, state: Any) -> Any:
    """A fresh optax state with what `leave` has written in its place.

    Raises UserError where the file was left by another optimiser, or for other parameters.
    """
    saved = {name: np.asarray(array) for name, array in load_file(path).items()}
    refuse_other(path, _described(saved), _described(_named(state)))

    def place(place: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return jax.device_put(saved[path_name(place)], leaf.sharding)

    return jax.tree_util.tree_map_with_path(place, state)


def refuse_other(path: Path, saved: set[str], wanted: set[str]) -> None:
    """Raises UserError unless both describe the same tensors."""
    if odd := sorted(saved ^ wanted):
        raise UserError(
            f"{path}: {odd[0]} does not fit: this optimiser's state was left by another "
            "learn.optimizer or another lora; keep these as they were"
        )


def _described(arrays: Mapping[str, Any]) -> set[str]:
    return {f"{name} {array.shape}" for name, array in arrays.items()}


def _named(state: Any) -> dict[str, jax.Array]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
