"""The model as the engine runs it: parameters, adapters, and the mesh they lie on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from selfevo_jax.models.cache import Cache, init_cache
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.lora import AdapterStack
from selfevo_jax.parallel.mesh import BATCH_AXES


@dataclass(frozen=True)
class Network:
    """`params` has its layers apart (`unstack_layers`)."""

    config: ModelConfig
    params: dict
    adapters: AdapterStack | None
    compute: Compute
    mesh: jax.sharding.Mesh | None

    @property
    def lanes(self) -> int:
        """How many rows one call must have: one per part of the mesh's batch axes."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    def call(self, function: Callable, *arguments: Any, **options: Any) -> Any:
        """A function of device.py, with this model."""
        with self.on_mesh():
            return function(
                self.params, self.adapters, *arguments,
                config=self.config, compute=self.compute, **options,
            )  # fmt: skip

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """The context in which device functions are called."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache split over the mesh: rows over the batch axes, heads over `tensor`."""
        cache = init_cache(self.config, rows, length, self.compute.dtype)
        if self.mesh is None:
            return cache
        whole = self.config.num_kv_heads % self.mesh.shape["tensor"]
        heads = NamedSharding(self.mesh, P(BATCH_AXES, None if whole else "tensor"))
        plain = NamedSharding(self.mesh, P(BATCH_AXES))
        return jax.tree.map(lambda x: jax.device_put(x, heads if x.ndim == 4 else plain), cache)
