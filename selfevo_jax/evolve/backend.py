"""The model behind a run: opened for its hash, loaded only when a stage has something to do."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.tiny import RANDOM, random_model
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.learn.trainer import JaxTrainer
from selfevo_jax.models.config import Compute
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.models.lora import Adapter, LoraConfig, adapter
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings
from selfevo_jax.records import Pair, content_id
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import Generator
from selfevo_jax.text.render import prompt_text, render_example
from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer
from selfevo_jax.weights.model_files import ModelFiles, open_model
from selfevo_jax.weights.peft import load_peft, save_peft

# Raised by hand when a change of the trainer changes what it gives for the same settings.
TRAINER_VERSION = "1"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Backend(Protocol):
    """What a run needs of a model and its trainer."""

    hash: str
    trainer_version: str

    def generator(self, policy: Policy) -> Generator:
        """An engine that samples from `policy`."""
        ...

    def train_settings(self) -> dict[str, Any]:
        """Everything about training, besides data and start, that decides its result."""
        ...

    def fit(
        self,
        pairs: Iterable[Pair],
        start: Path | None,
        folder: Path,
        on_step: Callable[[int, str], None],
    ) -> dict[str, int]:
        """Trains into `folder` (adapter/, metrics.jsonl); returns counts. Goes on after a kill."""
        ...


def open_source(source: str) -> ModelFiles:
    """The files of a model source; besides those of `weights.sources`, `random:tiny?seed=N`."""
    return open_model(random_model(source) if source.startswith(RANDOM) else source)


def compute_of(config: Mapping[str, Any]) -> Compute:
    """`Compute` from the `compute` settings. Raises UserError for an unknown dtype."""
    if config["dtype"] not in DTYPES:
        raise UserError(f"compute.dtype {config['dtype']!r} is unknown; use {' or '.join(DTYPES)}")
    return Compute(DTYPES[config["dtype"]], config["remat"])


class JaxModel:
    """A base model on a mesh, with its tokenizer; parameters are loaded at first use."""

    def __init__(self, source: str, compute: Mapping[str, Any], progress: Progress) -> None:
        """`compute`: the `compute` settings of a run (dtype, remat, mesh, slots, max_length)."""
        self.source, self.settings, self.progress = source, compute, progress
        self.compute = compute_of(compute)
        self._generator: tuple[Path | None, Generator] | None = None

    @cached_property
    def files(self) -> ModelFiles:
        """The opened files; no weights are read."""
        return open_source(self.source)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer with its chat template."""
        return load_tokenizer(self.files.path)

    @cached_property
    def mesh(self) -> Mesh:
        """The device mesh of `compute.mesh`."""
        return make_mesh(self.settings["mesh"])

    @cached_property
    def params(self) -> dict:
        """The base's parameters on the mesh."""
        config, dtype = self.files.config, self.compute.dtype
        placed = shardings(abstract_params(config, dtype), self.mesh)
        with self.progress.busy(f"loading {self.source}"):
            return jax.block_until_ready(self.files.load(placed, dtype))

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
                slots=self.settings["slots"],
                max_length=min(self.settings["max_length"], self.files.config.max_position),
                compute=self.compute,
                mesh=self.mesh,
            )
            self._generator = (folder, engine)
        return self._generator[1]

    def release_generator(self) -> None:
        """Drops the engine, so that its cache does not lie beside what training needs."""
        self._generator = None


class JaxBackend:
    """`Backend` on JAX, from a run's configuration."""

    trainer_version = TRAINER_VERSION

    def __init__(self, config: FrozenConfigDict, progress: Progress) -> None:
        self.config = config
        self.model = JaxModel(config.model, config.compute.to_dict(), progress)
        self.objective = Objective(**config.objective.to_dict())
        self.lora = LoraConfig(**config.lora.to_dict())
        learn = config.learn.to_dict()
        learn["clip"] = learn["clip"] or None
        self.fit_settings = FitSettings(**learn, lora=self.lora, seed=config.seed)

    @cached_property
    def hash(self) -> str:
        """Hash of the base's parameters and of its tokenizer with the chat template."""
        return content_id(self.model.files.hash, self.model.tokenizer.hash)

    def first_prompt(self, messages: Iterable[Mapping[str, str]]) -> str:
        """A prompt as the model reads it, control tokens in printed form."""
        return prompt_text(self.model.tokenizer, tuple(messages))

    def generator(self, policy: Policy) -> Generator:
        """See `Backend.generator`."""
        return self.model.generator(policy.adapter)

    def train_settings(self) -> dict[str, Any]:
        """See `Backend.train_settings`."""
        fit = dataclasses.asdict(self.fit_settings)
        del fit["checkpoint_every"]
        dtype = self.config.compute.dtype
        return {"objective": dataclasses.asdict(self.objective), "learn": fit, "dtype": dtype}

    def fit(
        self,
        pairs: Iterable[Pair],
        start: Path | None,
        folder: Path,
        on_step: Callable[[int, str], None],
    ) -> dict[str, int]:
        """See `Backend.fit`."""
        model = self.model
        model.release_generator()
        longest = model.files.config.max_position
        examples = [
            render_example(
                model.tokenizer, pair.id, pair.prompt, (pair.chosen, pair.rejected), longest
            )
            for pair in pairs
        ]
        trainer = JaxTrainer(
            model.files.config,
            model.params,
            model.tokenizer,
            base_hash=model.files.hash,
            compute=model.compute,
            mesh=model.mesh,
        )
        result = trainer.fit(
            examples,
            self.objective,
            self.fit_settings,
            folder,
            start=model.adapter(start)[0],
            reference=model.applied(start),
            on_step=lambda row: on_step(1, f"loss {row['loss']:.4f}"),
        )
        tree = jax.device_get(result.trained)
        save_peft(folder / "adapter", tree, self.lora, self.config.model, model.files.hash)
        return {"pairs": len(examples), "steps": result.steps, "tokens": result.tokens}
