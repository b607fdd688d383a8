"""`TorchTrainer`: the same fits as `JaxTrainer`, computed by torch, alone or under DeepSpeed.

Batches, order, seeds, start, schedule, metrics and files are those of `learn/fit.py`, whose plan
and loop run unchanged; only what a step computes, and how its state is saved, is torch's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import torch

from selfevo_jax.errors import UserError
from selfevo_jax.learn.batches import check_examples
from selfevo_jax.learn.carried import Carried
from selfevo_jax.learn.fit import Base, Fit
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitResult, FitSettings
from selfevo_jax.models.lora import Adapter, adapter
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.text.render import TokenExample
from selfevo_jax.torch_backend.checkpoints import TorchCheckpoints, go_on_with, leave_moments
from selfevo_jax.torch_backend.engine import Alone, Cell, Engine
from selfevo_jax.torch_backend.lora import (
    Slot,
    attached,
    base_slots,
    read_slots,
    write_slots,
)
from selfevo_jax.torch_backend.model import Decoder
from selfevo_jax.torch_backend.optimizer import Optimizer
from selfevo_jax.torch_backend.step import TorchSteps

MakeEngine = Callable[[Decoder, Optimizer], Engine]


class TorchTrainer:
    """`Trainer` on a transformers decoder. `tokenizer` only gives its hash to the store.

    `engine` computes the steps: `Alone`, or a `Zero` in each process of a group of `processes`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any = None,
        *,
        base_hash: str,
        engine: MakeEngine = Alone,
        processes: int = 1,
    ):
        self.decoder, self._engine, self._processes = decoder, engine, processes
        # Its sums differ from JAX's in the last bits, and a packed base's from the full one's.
        self._hash = "+".join(filter(None, (base_hash, decoder.quant, "torch")))
        self._tokenizer_hash = "none" if tokenizer is None else tokenizer.hash

    def fit(
        self,
        examples: Sequence[TokenExample],
        objective: Objective,
        settings: FitSettings,
        folder: Path,
        *,
        start: dict | None = None,
        reference: Adapter | None = None,
        anchor: Adapter | None = None,
        store: Path | None = None,
        carried: Carried | None = None,
        on_step: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> FitResult:
        """See `Trainer.fit`. The decoder is afterwards as it was before."""
        decoder = self.decoder
        longest = decoder.config.max_position
        check_examples(
            examples, pairs=objective.pairs, max_length=longest, labels=objective.takes_labels
        )
        if settings.profile_steps:
            raise UserError("learn.profile_steps traces JAX alone: leave it out with backend=torch")
        if settings.lora is None and decoder.quant is not None:
            raise UserError(
                f"cannot train all parameters of this base: its kernels are stored as "
                f"{decoder.quant}; load the base in full precision for this"
            )
        if settings.lora is None and decoder.divided:
            raise UserError(
                "cannot train all parameters of a base that was divided when read: read it whole"
            )
        whole = None if settings.lora else read_slots(base_slots(decoder))
        base = TorchBase(
            decoder.config, whole, decoder.compute, make_mesh("1,1,1", jax.devices()[:1]),
            self._hash, self._tokenizer_hash, self._processes,
        )  # fmt: skip
        fit = TorchFit(
            base, examples, objective, settings, Path(folder), start, reference, anchor, store,
            carried,
        )  # fmt: skip
        return fit.run_on(decoder, self._engine, on_step)


@dataclass(frozen=True)
class TorchBase(Base):
    """`Base`, and the processes that share each micro-batch's rows; `params` only where trained."""

    processes: int


class TorchFit(Fit):
    """`Fit` with torch's steps and checkpoints."""

    base: TorchBase

    def run_on(
        self,
        decoder: Decoder,
        engine: MakeEngine,
        on_step: Callable[[Mapping[str, Any]], None] | None,
    ) -> FitResult:
        """`Fit.run` on a decoder."""
        settings = self.settings
        on_card = decoder.device.type == "cuda"
        self._device = torch.cuda.get_device_name(decoder.device) if on_card else "cpu"
        with self._trainable(decoder) as slots:
            self._slots = slots
            self._optimizer = Optimizer(
                settings.optimizer,
                [slot.parameter for slot in slots],
                [slot.decayed for slot in slots],
                weight_decay=settings.weight_decay,
                clip=settings.clip,
            )
            self._engine = engine(decoder, self._optimizer)
            self.steps = TorchSteps(decoder, self.objective, slots, self._engine)
            try:
                return self.run(on_step)
            finally:
                if settings.lora is None:
                    write_slots(slots, self.base.params, self._engine.lend)

    @contextlib.contextmanager
    def _trainable(self, decoder: Decoder) -> Iterator[list[Slot]]:
        """The parameters to train, at their start."""
        lora = self.settings.lora
        if lora is not None:
            with attached(decoder, adapter(self.start, lora, train=True)) as slots:
                yield slots
            return
        slots = base_slots(decoder)
        for slot in slots:
            slot.parameter.requires_grad_(True)
        try:
            yield slots
        finally:
            for slot in slots:
                slot.parameter.requires_grad_(False)

    def _checkpoints(self, name: str, keep: int = 2) -> TorchCheckpoints:
        return TorchCheckpoints(self.folder / name, self._identity(), self._engine, keep=keep)

    def _writes(self) -> bool:
        return self._engine.rank == 0

    def _shards(self) -> int:
        return self.base.processes

    def _devices(self) -> list[str]:
        """One for each process, by the name that JAX has for it too."""
        return [self._device] * self.base.processes

    def _restore(self, checkpoints: TorchCheckpoints) -> tuple[int, dict[str, Any]]:
        """(steps done, the cells of the live state)."""
        cells = {
            moment: {slot.name: Cell(slot.parameter, moment) for slot in self._slots}
            for moment in (None, *self._optimizer.moments)
        }
        state = {"trainable": cells.pop(None), "optimizer": cells}
        if self.carried and self.carried.before:
            self._optimizer.earlier = go_on_with(self.carried.before, cells, self._engine)
        done = checkpoints.latest()
        if done is None:
            return 0, state
        checkpoints.restore(done, state)
        self._optimizer.count = done
        return done, state

    def _leave_optimizer(self, optimizer: dict[str, Any], path: Path) -> None:
        """Writes the moments, and how many steps they remember."""
        steps = self._optimizer.earlier + self._optimizer.count
        leave_moments(path, optimizer, steps, self._engine)

    def _result(self, last: dict[str, Any]) -> dict:
        """The tree that the fit gives: the last, or the best by the held-out loss."""
        if self.settings.keep == "best":
            self.best.restore(self.course.best_step, last)
        return read_slots(self._slots, self._engine.weights)
