"""What a run needs of its models and their trainer, and how JAX gives it."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import FrozenConfigDict

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.embedding import SentenceEncoder, embed_texts
from selfevo_jax.evolve.files import file_sha256
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.lesson_text import Trainable, rendered
from selfevo_jax.evolve.policy import EMBEDDING, Policy, Role
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.tiny import RANDOM
from selfevo_jax.evolve.training import Fitting, Training
from selfevo_jax.evolve.uncertainty import token_statistics
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.learn.trainer import JaxTrainer, Trainer
from selfevo_jax.models.lora import Adapter, rescaled
from selfevo_jax.models.merge import Part, merge_adapters
from selfevo_jax.parallel.distributed import agreed, one_after_another, own_name
from selfevo_jax.records import Prompt, Sample, content_id
from selfevo_jax.sample.http.client import HttpGenerator, open_server
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.http.secret import secret_from_environment
from selfevo_jax.sample.protocol import Generator
from selfevo_jax.text.render import TokenExample, prompt_text, render_example
from selfevo_jax.text.tokenizer import Tokenizer
from selfevo_jax.weights.encoder_files import is_encoder
from selfevo_jax.weights.peft import WEIGHTS, save_peft
from selfevo_jax.weights.sources import resolve

log = logging.getLogger(__name__)

# Raised by hand when a change of the trainer changes what it gives for the same settings.
TRAINER_VERSION = "1"


class Backend(Protocol):
    """What a run needs of its models and their trainer."""

    hash: str
    trainer_version: str

    def role_hash(self, role: Role) -> str:
        """What a model in a role is, as far as that can be known."""
        ...

    def generator(self, policy: Policy) -> Generator:
        """An engine that samples from `policy`."""
        ...

    def tokenizer(self, policy: Policy) -> Tokenizer | None:
        """The tokenizer of `policy`; None of a model on a server."""
        ...

    def judge(self, policy: Policy) -> JudgeModel:
        """`policy` as a judge."""
        ...

    def embedder(self, policy: Policy) -> Callable[[list[str]], np.ndarray]:
        """What gives unit vectors, float32 [n, d], of at most `embedding.CHUNK` texts."""
        ...

    def weigher(
        self, policy: Policy
    ) -> Callable[[list[tuple[Sample, Prompt]]], list[dict[str, np.ndarray]]]:
        """What gives entropy, margin and log-prob of each token of `uncertainty.ROWS` replies."""
        ...

    def train_settings(self, training: Training) -> dict[str, Any]:
        """Everything about a training, besides data and start, that decides its result."""
        ...

    def fit(
        self,
        examples: Iterable[Trainable],
        fitting: Fitting,
        on_step: Callable[[int, str], None],
    ) -> dict[str, int]:
        """Trains, and returns counts. Goes on after a kill."""
        ...

    def merge(
        self, policies: Sequence[Policy], how: str, density: float, folder: Path
    ) -> dict[str, int]:
        """Merges the policies' adapters into `folder` (adapter/); returns counts."""
        ...


class JaxBackend:
    """`Backend` on JAX, from a run's configuration."""

    trainer_version = TRAINER_VERSION

    def __init__(
        self, config: FrozenConfigDict, progress: Progress, workdir: Path | None = None
    ) -> None:
        """`workdir` is the run's, where caps on servers count over all starts."""
        self.config, self.progress, self._workdir = config, progress, workdir
        self.model = JaxModel(config.model, config.compute.to_dict(), progress)
        self._others: dict[str, JaxModel] = {}
        self._encoders: dict[str, SentenceEncoder | None] = {}
        self._servers: dict[Role, HttpGenerator] = {}

    @cached_property
    def hash(self) -> str:
        """Hash of the base's parameters and of its tokenizer with the chat template."""
        return content_id(self.model.hash, self.model.tokenizer.hash)

    def check_mesh(self) -> None:
        """Raises UserError where the devices do not make up `compute.mesh`."""
        _ = self.model.mesh

    def first_prompt(self, messages: Iterable[Mapping[str, str]]) -> str:
        """A prompt as the model reads it, control tokens in printed form."""
        return prompt_text(self.model.tokenizer, tuple(messages))

    def role_hash(self, role: Role) -> str:
        """See `Backend.role_hash`; of a model on a server no more is known than its name."""
        if role.remote is not None:
            return content_id("server", *role.remote)
        if (encoder := self._encoder(role)) is not None:
            self._check_embeds_alone(role)
            return encoder.hash
        model = self._local(role)
        trained = "none"
        if role.adapter:
            weights = Path(role.adapter) / WEIGHTS
            if not weights.is_file():
                raise UserError(f"a role's adapter {role.adapter} is no PEFT folder: no {WEIGHTS}")
            trained = file_sha256(weights)
        return content_id(model.hash, model.tokenizer.hash, trained)

    def generator(self, policy: Policy) -> Generator:
        """See `Backend.generator`."""
        role = policy.role
        if role is not None and role.remote is not None:
            return self._server(role)
        return self._model(policy).generator(_adapter_of(policy))

    def tokenizer(self, policy: Policy) -> Tokenizer | None:
        """See `Backend.tokenizer`."""
        if (encoder := self._encoder(policy.role)) is not None:
            return encoder.tokenizer
        remote = policy.role is not None and policy.role.remote is not None
        return None if remote else self._model(policy).tokenizer

    def judge(self, policy: Policy) -> JudgeModel:
        """See `Backend.judge`; a server tells no probabilities, so its words are read."""
        if policy.role is not None and policy.role.remote is not None:
            return JudgeModel(policy.name, self.generator(policy), verdict="text")
        model = self._model(policy)
        room = min(self.config.compute.max_length, model.files.config.max_position)
        return JudgeModel(policy.name, self.generator(policy), model.tokenizer, room)

    def embedder(self, policy: Policy) -> Callable[[list[str]], np.ndarray]:
        """See `Backend.embedder`. Raises UserError for a model on a server."""
        if (encoder := self._encoder(policy.role)) is not None:
            return encoder.embed
        model, adapter = self._opened(policy)
        config = model.files.config
        room = min(self.config.compute.max_length, config.max_position)
        return lambda texts: embed_texts(
            config, model.params, adapter, model.compute, model.tokenizer, texts, room
        )

    def weigher(
        self, policy: Policy
    ) -> Callable[[list[tuple[Sample, Prompt]]], list[dict[str, np.ndarray]]]:
        """See `Backend.weigher`. Raises UserError for a model on a server."""
        model, adapter = self._opened(policy)
        config = model.files.config

        def weigh(replies: list[tuple[Sample, Prompt]]) -> list[dict[str, np.ndarray]]:
            examples = reply_examples(model.tokenizer, replies, config.max_position)
            return token_statistics(config, model.params, adapter, model.compute, examples)

        return weigh

    def train_settings(self, training: Training) -> dict[str, Any]:
        """See `Backend.train_settings`."""
        return training.settings() | {"dtype": self.config.compute.dtype}

    def fit(
        self,
        examples: Iterable[Trainable],
        fitting: Fitting,
        on_step: Callable[[int, str], None],
    ) -> dict[str, int]:
        """See `Backend.fit`."""
        model = self.model
        model.release_generator()
        trainer = JaxTrainer(
            model.files.config,
            model.training_params,
            model.tokenizer,
            base_hash=model.files.hash,
            compute=model.compute,
            mesh=model.training_mesh,
        )
        return self._fit_adapter(trainer, examples, fitting, on_step)

    def _fit_adapter(
        self,
        trainer: Trainer,
        examples: Iterable[Trainable],
        fitting: Fitting,
        on_step: Callable[[int, str], None],
        *,
        writes: bool = True,
    ) -> dict[str, int]:
        """`fit` by any trainer, in this process, which `writes` the adapter or leaves it to one
        of its group."""
        model, training = self.model, fitting.training
        longest = model.files.config.max_position
        texts = [rendered(model.tokenizer, example, longest) for example in _different(examples)]
        start, lora = model.adapter(fitting.start.adapter)
        result = trainer.fit(
            texts,
            training.objective,
            training.fit,
            fitting.folder,
            start=rescaled(start, lora, training.fit.lora),
            reference=model.applied(fitting.reference.adapter),
            store=fitting.store,
            carried=fitting.carried,
            on_step=lambda row: on_step(1, f"loss {row['loss']:.4f}"),
        )
        if writes:
            save_peft(
                fitting.folder / "adapter", result.trained, training.fit.lora,
                self.config.model, model.files.hash, fitting.lineage(),
            )  # fmt: skip
        return {"examples": len(texts), "steps": result.steps, "tokens": result.tokens}

    def merge(
        self, policies: Sequence[Policy], how: str, density: float, folder: Path
    ) -> dict[str, int]:
        """See `Backend.merge`. Raises UserError when a policy has no adapter."""
        parts = []
        for policy in policies:
            tree, lora = self.model.adapter(policy.adapter)
            if tree is None or lora is None:
                raise UserError(f"{policy.name} has no adapter to merge")
            parts.append(Part(tree, lora, name=policy.name))
        tree, lora, merged = merge_adapters(parts, how, density=density, seed=self.config.seed)
        origin = merged | {"hashes": {policy.name: policy.hash for policy in policies}}
        base = self.model.files.hash
        target = folder / "adapter"
        agreed(lambda: save_peft(target, tree, lora, self.config.model, base, origin))
        return {"adapters": len(parts)}

    def _model(self, policy: Policy) -> JaxModel:
        return self.model if policy.role is None else self._local(policy.role)

    def _opened(self, policy: Policy) -> tuple[JaxModel, Adapter | None]:
        """The model of a policy and its adapter, for what needs more than text."""
        if policy.role is not None and policy.role.remote is not None:
            raise UserError(
                f"{policy.name} is a model on a server, which shows text only; give a local one"
            )
        model = self._model(policy)
        return model, model.applied(_adapter_of(policy))

    def _local(self, role: Role) -> JaxModel:
        """The model of a role; one of the run's own base shares its weights."""
        if role.model in ("", self.config.model):
            return self.model
        if role.model not in self._others:
            settings = self.config.compute.to_dict()
            self._others[role.model] = JaxModel(role.model, settings, self.progress)
        return self._others[role.model]

    def _encoder(self, role: Role | None) -> SentenceEncoder | None:
        """The sentence encoder that is bound to a role; None of any other model."""
        if role is None or role.remote is not None or role.model in ("", self.config.model):
            return None
        if role.model not in self._encoders:
            found = not role.model.startswith(RANDOM) and one_after_another(
                lambda: is_encoder(resolve(role.model))
            )
            made = SentenceEncoder(role.model, self.progress) if found else None
            self._encoders[role.model] = made
        return self._encoders[role.model]

    def _check_embeds_alone(self, role: Role) -> None:
        """Refuses an encoder with an adapter, or in a role that writes. Raises UserError."""
        if role.adapter:
            raise UserError(f"{role.model} is a sentence encoder, which takes no adapter here")
        given = {name: Role(**one.to_dict()) for name, one in self.config.get("roles", {}).items()}
        for name in sorted(given.keys() - set(EMBEDDING)):
            if given[name] == role:
                raise UserError(
                    f"--config.roles.{name}.model={role.model} is a sentence encoder, which embeds "
                    f"text and writes none: bind it as --config.roles.{EMBEDDING[0]}.model"
                )

    def _server(self, role: Role) -> HttpGenerator:
        if role not in self._servers:
            address, name = role.remote or ("", "")
            key = secret_from_environment(role.key_env) if role.key_env else None
            endpoint = Endpoint(address, name, key=key)
            # Hosts cannot share SQLite's files on a file server: each has its own.
            kept = self._workdir / own_name("servers") if self._workdir else None
            self._servers[role] = open_server(endpoint, role, kept)
        return self._servers[role]


def reply_examples(
    tokenizer: Tokenizer, replies: Iterable[tuple[Sample, Prompt]], longest: int
) -> list[TokenExample]:
    """Replies as they were written: one that was cut off has no end-of-turn token."""
    return [
        render_example(
            tokenizer, s.id, prompt.messages, (s.text,), longest,
            end=s.finish == "stop" or not s.text,
        )
        for s, prompt in replies
    ]  # fmt: skip


def _different(examples: Iterable[Trainable]) -> list[Trainable]:
    """The examples, equal ones once: samples may say the same, and a fit refuses equal ids."""
    given = list(examples)
    kept = {example.id: example for example in reversed(given)}
    if len(kept) < len(given):
        log.info("%d of %d training examples are there twice", len(given) - len(kept), len(given))
    return list(reversed(kept.values()))


def _adapter_of(policy: Policy) -> Path | None:
    if policy.role is not None:
        return Path(policy.role.adapter) if policy.role.adapter else None
    return policy.adapter
