"""`TorchBackend`: what a run needs of its models and their trainer, on torch.

Sources, tokenizers, prompts, judges, hashes, merging and servers are `JaxBackend`'s; whatever
computes with a model's weights is here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from ml_collections import FrozenConfigDict

from selfevo_jax.config import plain
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.backend import JaxBackend, reply_examples
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.lesson_text import Trainable
from selfevo_jax.evolve.policy import Policy, Role
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.shards import PoolGenerator
from selfevo_jax.evolve.training import Fitting, Training
from selfevo_jax.models.lora import Adapter
from selfevo_jax.records import Prompt, Sample
from selfevo_jax.sample.protocol import Generator
from selfevo_jax.text.render import TokenExample
from selfevo_jax.torch_backend.engine import Alone
from selfevo_jax.torch_backend.generator import TorchGenerator
from selfevo_jax.torch_backend.group import Group, choose_group
from selfevo_jax.torch_backend.launch import run_group, write_job
from selfevo_jax.torch_backend.lora import attached
from selfevo_jax.torch_backend.model import Decoder, Divide, Layout
from selfevo_jax.torch_backend.pool import Samplers
from selfevo_jax.torch_backend.trainer import MakeEngine, TorchTrainer

SHARD = 2  # times `compute.slots`: requests that go to a process of a pool together
TRAINER_VERSION = "torch-2"  # raised by hand like `evolve.backend.TRAINER_VERSION`


class TorchModel(JaxModel):
    """A base model as a transformers decoder; weights are loaded at first use, and `divide`d where
    several processes are to train on it."""

    divide: Divide | None = None

    def __init__(self, source: str, compute: Mapping[str, Any], progress: Progress) -> None:
        super().__init__(source, compute, progress)
        if self.quant not in (None, "nf4"):
            raise UserError(
                f"compute.quant={self.quant} is not there with backend=torch: use nf4, or "
                "backend=jax"
            )

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder on this machine's GPU, or on the CPU."""
        with self.progress.busy(f"loading {self.source}"):
            return Decoder.from_files(
                self.files, self.compute, quant=self.quant, divide=self.divide
            )

    def generator(self, folder: Path | None) -> Generator:
        """An engine for the base with the adapter in `folder`; the last one made is kept."""
        if self._generator is None or self._generator[0] != folder:
            self.release_generator()
            engine = TorchGenerator(
                self.decoder,
                self.tokenizer,
                adapter=self.applied(folder),
                slots=self.settings["slots"],
                max_length=min(self.settings["max_length"], self.files.config.max_position),
            )
            self._generator = (folder, engine)
        return self._generator[1]

    def release_decoder(self) -> None:
        """Drops the weights, so that the processes of a training find the GPU's memory free."""
        self.__dict__.pop("decoder", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def release_generator(self) -> None:
        """Drops the engine and takes its adapter out of the decoder."""
        if self._generator is not None:
            self._generator[1].close()
        self._generator = None


class TorchBackend(JaxBackend):
    """`Backend` on torch, from a run's configuration."""

    trainer_version = TRAINER_VERSION

    def __init__(
        self,
        config: FrozenConfigDict,
        progress: Progress,
        workdir: Path | None = None,
        *,
        group: Group | None = None,
    ) -> None:
        """`group`: the processes that train; None: chosen from the machine."""
        super().__init__(config, progress, workdir)
        # JAX only plans and draws numbers here; on a GPU it would take most of the memory.
        if not jax.config.jax_platforms:
            jax.config.update("jax_platforms", "cpu")
        self.model = self._open(config.model)
        if group is None:
            group = choose_group(config.torch, os.environ, torch.cuda.device_count())
            progress.say(group.told())
            if group.processes > 1:
                progress.say(f"sampling and judging: {group.processes} processes of this machine")
        if self.model.quant is not None and group.stage == 3:
            raise UserError(
                f"{group.deepspeed} divides parameters, which packed ones (compute.quant="
                f"{self.model.quant}) do not allow: --config.torch.deepspeed=zero2 does"
            )
        self._group = group
        self.samplers: Samplers | None = None

    def check_mesh(self) -> None:
        """Nothing: `compute.mesh` divides what JAX sees, and here processes have the GPUs."""

    def generator(self, policy: Policy) -> Generator:
        """See `Backend.generator`: an engine here, or one in each of the group's processes here."""
        remote = policy.role is not None and policy.role.remote is not None
        if remote or self._group.processes == 1:
            return super().generator(policy)
        return PoolGenerator(policy, SHARD * self.config.compute.slots, self._pool)

    def _pool(self) -> Samplers:
        """The processes that sample, started where they are not there; this one's own models leave
        the GPUs to them."""
        if self.samplers is None or self.samplers.closed:
            self.end_sampling()
            for model in (self.model, *self._others.values()):
                model.release_generator()
                model.release_decoder()
            self.samplers = Samplers(plain(self.config), self._group.processes)
        return self.samplers

    def end_sampling(self) -> None:
        """Ends the processes that sample, so that others find the GPUs' memory free."""
        if self.samplers is not None:
            self.samplers.close()

    def embedder(self, policy: Policy) -> Callable[[list[str]], np.ndarray]:
        """See `Backend.embedder`; a sentence encoder is JAX's. Raises UserError for a server's."""
        if self._encoder(policy.role) is not None:
            return super().embedder(policy)
        model, adapter = self._opened(policy)
        room = min(self.config.compute.max_length, model.files.config.max_position)

        @torch.no_grad()
        def embed(texts: list[str]) -> np.ndarray:
            encode, pad = model.tokenizer.encode, model.tokenizer.pad_id
            ids = [encode(text)[:room] or [pad] for text in texts]
            pooled = [_hidden(model.decoder, adapter, text).float().mean(0) for text in ids]
            return torch.nn.functional.normalize(torch.stack(pooled), eps=1e-9).cpu().numpy()

        return embed

    def weigher(
        self, policy: Policy
    ) -> Callable[[list[tuple[Sample, Prompt]]], list[dict[str, np.ndarray]]]:
        """See `Backend.weigher`. Raises UserError for a model on a server."""
        model, adapter = self._opened(policy)
        longest = model.files.config.max_position

        def weigh(replies: list[tuple[Sample, Prompt]]) -> list[dict[str, np.ndarray]]:
            examples = reply_examples(model.tokenizer, replies, longest)
            return [_statistics(model.decoder, adapter, example) for example in examples]

        return weigh

    def train_settings(self, training: Training) -> dict[str, Any]:
        """See `Backend.train_settings`."""
        return super().train_settings(training) | {"backend": "torch"}

    def fit(
        self,
        examples: Iterable[Trainable],
        fitting: Fitting,
        on_step: Callable[[int, str], None],
    ) -> dict[str, int]:
        """See `Backend.fit`: in this process, or in a group of them that is started for it."""
        self.model.release_generator()
        self.end_sampling()
        records, group = list(examples), self._group
        if group.deepspeed is None:
            return self.fit_here(records, fitting, on_step)
        self.model.release_decoder()
        job = {
            "config": plain(self.config),
            "kind": type(records[0]).__name__,
            "fitting": json.loads(json.dumps(dataclasses.asdict(fitting), default=_text)),
            "deepspeed": _text(group.deepspeed),
        }
        place = fitting.folder / "group"
        write_job(place, job, [json.dumps(record.to_json()) for record in records])

        def told(line: str) -> None:
            on_step(1, f"loss {json.loads(line)['loss']:.4f}")

        counts = run_group(group, place, fitting.folder / "metrics.jsonl", told)
        shutil.rmtree(place)
        return counts

    def fit_here(
        self,
        examples: Sequence[Trainable],
        fitting: Fitting,
        on_step: Callable[[int, str], None],
        *,
        engine: MakeEngine = Alone,
        processes: int = 1,
        writes: bool = True,
    ) -> dict[str, int]:
        """`fit` in this process, which may be one of several; the first of them `writes`."""
        model = self.model
        trainer = TorchTrainer(
            model.decoder,
            model.tokenizer,
            base_hash=model.files.hash,
            engine=engine,
            processes=processes,
        )
        return self._fit_adapter(trainer, examples, fitting, on_step, writes=writes)

    def _opened(self, policy: Policy) -> tuple[TorchModel, Adapter | None]:
        self.end_sampling()
        return super()._opened(policy)

    def _local(self, role: Role) -> TorchModel:
        if role.model in ("", self.config.model):
            return self.model
        if role.model not in self._others:
            self._others[role.model] = self._open(role.model)
        return self._others[role.model]

    def _open(self, source: str) -> TorchModel:
        return TorchModel(source, self.config.compute.to_dict(), self.progress)


def _text(path: Path) -> str:
    return str(path.absolute())


def _hidden(decoder: Decoder, adapter: Adapter | None, ids: Sequence[int]) -> torch.Tensor:
    """Hidden states [t, d] of one text."""
    decoder.module.eval()
    tokens_bt = torch.tensor([list(ids)], device=decoder.device)
    ones_bt = torch.ones_like(tokens_bt)
    layout = Layout(ones_bt.cumsum(1) - 1, ones_bt, torch.zeros_like(ones_bt))
    with attached(decoder, adapter):
        return decoder.hidden(tokens_bt, layout, layout)[0]


@torch.no_grad()
def _statistics(
    decoder: Decoder, adapter: Adapter | None, example: TokenExample
) -> dict[str, np.ndarray]:
    """Entropy, margin and log-prob of each token of a reply, as `evolve.uncertainty` has them."""
    prompt, reply = example.prompt.tokens, example.completions[0].tokens
    ids = np.concatenate([prompt, reply]).tolist()
    hidden_td = _hidden(decoder, adapter, ids[:-1])[len(prompt) - 1 :]
    logps_tv = decoder.logits(hidden_td).log_softmax(-1)
    top_t2 = logps_tv.topk(2, -1).values.exp()
    targets_t1 = torch.tensor(reply, device=decoder.device).long()[:, None]
    found = {
        "entropy": -(logps_tv.exp() * logps_tv).sum(-1),
        "margin": top_t2[:, 0] - top_t2[:, 1],
        "logp": logps_tv.gather(1, targets_t1)[:, 0],
    }
    return {name: value.cpu().numpy() for name, value in found.items()}
