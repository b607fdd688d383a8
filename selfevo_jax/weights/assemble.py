"""From a file's tensors to the parameter tree, one device shard at a time.

A `TensorStore` reads slices of tensors. `load_tree` asks it only for the slice each device
holds, so a sharded model is never whole in the host's memory.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from selfevo_jax.errors import UserError
from selfevo_jax.models.bert import BertConfig
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.weights.names import Leaf, leaves

Bounds = tuple[tuple[int, int], ...]  # start and stop on every axis


class TensorStore(Protocol):
    """Named tensors of a checkpoint, read by slices."""

    label: str  # the file or folder, for messages

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor that must be used."""
        ...

    def name(self, leaf: Leaf, layer: int) -> str:
        """What the tensor of `leaf` in `layer` is called here."""
        ...

    def read(self, name: str, bounds: Bounds) -> np.ndarray:
        """The slice of a tensor, in the file's orientation; a floating point dtype."""
        ...


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def check_tensors(config: ModelConfig | BertConfig, store: TensorStore) -> None:
    """Raise UserError unless the store holds exactly the tensors of `config`, shapes included."""
    found = store.shapes()
    expected = {
        store.name(leaf, layer): leaf.file_shape for leaf in leaves(config) for layer in leaf.layers
    }
    if missing := [name for name in expected if name not in found]:
        raise UserError(f"{store.label}: missing tensors {_some(missing)}; is a shard absent?")
    if unexpected := [name for name in found if name not in expected]:
        raise UserError(
            f"{store.label}: tensors {_some(unexpected)} have no place in a {config.family} model; "
            "its config does not describe these weights"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(
                f"{store.label}: tensor {name} has shape {list(found[name])}, "
                f"its config asks for {list(shape)}"
            )


def _read_shard(store: TensorStore, leaf: Leaf, dtype: np.dtype, bounds: Bounds) -> np.ndarray:
    """The part of a leaf inside `bounds`, cast and transposed into one fresh array."""
    out = np.empty([stop - start for start, stop in bounds], dtype)
    layers = range(*bounds[0]) if leaf.stacked else range(1)
    inner = bounds[1:] if leaf.stacked else bounds
    for row, layer in enumerate(layers):
        part = store.read(store.name(leaf, layer), inner[::-1] if leaf.transposed else inner)
        target = out[row] if leaf.stacked else out
        target[...] = part.T if leaf.transposed else part
    return out


def _shard_reader(
    store: TensorStore, leaf: Leaf, dtype: np.dtype
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """A callback for `jax.make_array_from_callback`; replicas of a shard are read once."""
    seen: dict[Bounds, np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        spans = zip(index, leaf.shape, strict=True)
        bounds = tuple(part.indices(size)[:2] for part, size in spans)
        if bounds not in seen:
            seen[bounds] = _read_shard(store, leaf, dtype, bounds)
        return seen[bounds]

    return read


def load_tree(
    config: ModelConfig | BertConfig,
    store: TensorStore,
    shardings: Mapping[str, Any] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> dict[str, Any]:
    """Read all parameters as jax arrays of `dtype`.

    `shardings` is a tree of `jax.sharding.Sharding` like the parameters; None puts everything
    on the first device. Raises UserError when the tensors do not fit `config`.
    """
    check_tensors(config, store)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = None if shardings is None else flatten_dict(shardings)
    tree = {}
    for leaf in leaves(config):
        sharding = first if placed is None else placed[leaf.path]
        reader = _shard_reader(store, leaf, jnp.dtype(dtype))
        tree[leaf.path] = jax.make_array_from_callback(leaf.shape, sharding, reader)
    return unflatten_dict(tree)
