"""The model behind a run: opened for its hash, loaded only when a stage has something to do."""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.tiny import RANDOM, random_model
from selfevo_jax.models.config import REMATS, Compute
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.models.lora import Adapter, LoraConfig, adapter
from selfevo_jax.models.quantize import KINDS, quantize_base
from selfevo_jax.parallel.compile_cache import keep_compiled
from selfevo_jax.parallel.distributed import one_after_another
from selfevo_jax.parallel.mesh import BATCH_AXES, local_mesh, make_mesh, with_layers_split
from selfevo_jax.parallel.placement import replication_warnings
from selfevo_jax.parallel.rules import same_shares, shardings
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import Generator
from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer
from selfevo_jax.weights.model_files import ModelFiles, open_model
from selfevo_jax.weights.peft import load_peft
from selfevo_jax.weights.storage import cache_folder

PROMPT_ROWS = 8  # prompts kept to be shared, all hosts together
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def open_source(source: str) -> ModelFiles:
    """The files of a model source; besides those of `weights.sources`, `random:tiny?seed=N`."""
    return open_model(random_model(source) if source.startswith(RANDOM) else source)


def compute_of(config: Mapping[str, Any]) -> Compute:
    """`Compute` from the `compute` settings. Raises UserError for an unknown dtype or remat."""
    for name, known in (("dtype", DTYPES), ("remat", REMATS)):
        if config[name] not in known:
            raise UserError(f"compute.{name} {config[name]!r} is unknown; use {', '.join(known)}")
    return Compute(DTYPES[config["dtype"]], config["remat"])


def quant_of(config: Mapping[str, Any]) -> str | None:
    """How the base is stored, from the `compute` settings. Raises UserError for an unknown way."""
    kind = config.get("quant", "none")
    if kind not in ("none", *KINDS):
        raise UserError(f"compute.quant {kind!r} is unknown; use none or {' or '.join(KINDS)}")
    return None if kind == "none" else kind


class JaxModel:
    """A base model on a mesh, with its tokenizer; parameters are loaded at first use.

    Several hosts share the parameters for training; each samples with a copy on its own devices.
    """

    def __init__(self, source: str, compute: Mapping[str, Any], progress: Progress) -> None:
        """`compute`: the `compute` settings of a run (dtype, remat, quant, mesh, slots, ...)."""
        self.source, self.settings, self.progress = source, compute, progress
        self.compute, self.quant = compute_of(compute), quant_of(compute)
        self._generator: tuple[Path | None, Generator] | None = None
        keep_compiled(cache_folder() / "compiled")

    @cached_property
    def files(self) -> ModelFiles:
        """The opened files; no weights are read."""
        return one_after_another(lambda: open_source(self.source))

    @property
    def hash(self) -> str:
        """Hash of the base as it is computed with: a quantised one is another model."""
        return self.files.hash if self.quant is None else f"{self.files.hash}+{self.quant}"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer with its chat template."""
        return load_tokenizer(self.files.path)

    @cached_property
    def training_mesh(self) -> Mesh:
        """The mesh of `compute.mesh`, over the devices of all hosts."""
        return make_mesh(self.settings["mesh"])

    @cached_property
    def mesh(self) -> Mesh:
        """The part of it that this host has for itself."""
        return local_mesh(self.training_mesh)

    @cached_property
    def sampling_mesh(self) -> Mesh:
        """`mesh` as the engine has it. A CPU's devices share one memory, so that nothing is to be
        gained: there a row's bits are the same on any number of them."""
        if self.mesh.devices.flat[0].platform == "cpu":
            return self.mesh
        return with_layers_split(self.mesh, self.files.config.num_kv_heads)

    @cached_property
    def params(self) -> dict:
        """The base's parameters on `mesh`."""
        return self._load(self.mesh)

    @cached_property
    def training_params(self) -> dict:
        """The base's parameters on `training_mesh`."""
        if self.mesh == self.training_mesh:
            return self.params
        if jax.process_count() > 1:
            return self._load(self.training_mesh)
        placed = jax.device_put(self.params, shardings(self.params, self.mesh))
        return same_shares(placed, self.training_mesh)

    def _load(self, mesh: Mesh) -> dict:
        config, dtype = self.files.config, self.compute.dtype
        placed = shardings(abstract_params(config, dtype), mesh)
        with self.progress.busy(f"loading {self.source}"):
            params = self.files.load(placed, dtype)
            if self.quant is not None:
                params = quantize_base(params, self.quant)
            jax.block_until_ready(params)
        for line in replication_warnings(params, mesh.size):
            self.progress.say(f"warning: {line}; more fsdp or tensor in compute.mesh shares it")
        return params

    def adapter(self, folder: Path | None) -> tuple[dict | None, LoraConfig | None]:
        """The LoRA tree and shape in a PEFT folder; (None, None) for the base itself."""
        if folder is None:
            return None, None
        return load_peft(folder, self.files.config, self.files.hash)

    def applied(self, folder: Path | None) -> Adapter | None:
        """The adapter in a PEFT folder, ready for the forward pass."""
        tree, lora = self.adapter(folder)
        return None if tree is None or lora is None else adapter(tree, lora)

    def generator(self, folder: Path | None) -> Generator:
        """An engine for the base with the adapter in `folder`; the last one made is kept."""
        if self._generator is None or self._generator[0] != folder:
            self._generator = None  # frees its cache before the next one is made
            engine = JaxGenerator(
                self.files.config,
                self.params,
                self.tokenizer,
                adapter=self.applied(folder),
                slots=self._share(self.settings["slots"]),
                prompt_rows=self._share(PROMPT_ROWS),
                max_length=min(self.settings["max_length"], self.files.config.max_position),
                compute=self.compute,
                mesh=self.sampling_mesh,
            )
            self._generator = (folder, engine)
        return self._generator[1]

    def _share(self, rows: int) -> int:
        """This host's share of so many rows of all hosts, as its mesh splits them evenly."""
        split = math.prod(self.sampling_mesh.shape[axis] for axis in BATCH_AXES)
        return max(rows // jax.process_count() // split, 1) * split

    def release_generator(self) -> None:
        """Drops the engine, so that its cache does not lie beside what training needs."""
        self._generator = None
