"""`TorchTrainer`: the same fits as `JaxTrainer`, computed by torch on one device.

Batches, order, seeds, start, schedule, metrics and files are those of `learn/fit.py`, whose plan
and loop run unchanged; only what a step computes, and how its state is saved, is torch's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from selfevo_jax.learn.batches import check_examples
from selfevo_jax.learn.fit import Base, Fit
from selfevo_jax.learn.held_out import Course
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.metrics import MetricsLog
from selfevo_jax.learn.protocol import FitResult, FitSettings
from selfevo_jax.models.lora import Adapter, adapter
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.text.render import TokenExample
from selfevo_jax.torch_backend.checkpoints import TorchCheckpoints
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


class TorchTrainer:
    """`Trainer` on a transformers decoder. `tokenizer` only gives its hash to the store."""

    def __init__(self, decoder: Decoder, tokenizer: Any = None, *, base_hash: str):
        self.decoder = decoder
        self._hash = f"{base_hash}+torch"  # its sums differ from JAX's in the last bits
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
        on_step: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> FitResult:
        """See `Trainer.fit`. The decoder is afterwards as it was before."""
        decoder = self.decoder
        longest = decoder.config.max_position
        check_examples(
            examples, pairs=objective.pairs, max_length=longest, labels=objective.takes_labels
        )
        whole = None if settings.lora else read_slots(base_slots(decoder))
        base = Base(
            decoder.config, whole, decoder.compute, make_mesh("1,1,1", jax.devices()[:1]),
            self._hash, self._tokenizer_hash,
        )  # fmt: skip
        fit = TorchFit(
            base, examples, objective, settings, Path(folder), start, reference, anchor, store
        )
        return fit.run_on(decoder, on_step)


class TorchFit(Fit):
    """`Fit` with torch's steps and checkpoints."""

    def run_on(
        self, decoder: Decoder, on_step: Callable[[Mapping[str, Any]], None] | None
    ) -> FitResult:
        """`Fit.run` on a decoder."""
        settings = self.settings
        with self._training(decoder) as slots:
            self._slots = slots
            self._optimizer = Optimizer(
                settings.optimizer,
                [slot.parameter for slot in slots],
                [slot.decayed for slot in slots],
                self.rate,
                weight_decay=settings.weight_decay,
                clip=settings.clip,
            )
            self.steps = TorchSteps(decoder, self.objective, slots, self._optimizer)
            return self.run(on_step)

    @contextlib.contextmanager
    def _training(self, decoder: Decoder) -> Iterator[list[Slot]]:
        """The parameters to train, at their start; the base is as before when it is over."""
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
            write_slots(slots, self.base.params)
            for slot in slots:
                slot.parameter.requires_grad_(False)

    def run(self, on_step: Callable[[Mapping[str, Any]], None] | None) -> FitResult:
        """Goes on from the newest checkpoint to the last step."""
        begun = time.monotonic()
        identity = self._identity()
        checkpoints = TorchCheckpoints(self.folder / "checkpoints", identity)
        self.best = TorchCheckpoints(self.folder / "best", identity, keep=1) if self.held else None
        done, state = self._restore(checkpoints)
        self.metrics = MetricsLog(self.folder, done)
        self.course = Course(self.settings, self.metrics.rows)
        self.on_step = on_step
        try:
            if done < self.total and not self.course.stopped:
                self._ask_frozen()
                state = self._train(done, state, checkpoints)
            trained = self._result(state["trainable"])
        finally:
            self.metrics.close()
        return FitResult(
            trained=trained,
            lora=self.settings.lora,
            metrics=self.metrics.rows,
            steps=len(self.metrics.rows),
            tokens=sum(row["tokens"] for row in self.metrics.rows),
            seconds=time.monotonic() - begun,
            adapter_shift=self._shift(trained),
            best_step=self.course.best_step,
        )

    def _flops(self, step: int) -> float:
        """Not counted: the peaks that a share is taken of are those of JAX's devices."""
        return 0.0

    def _restore(self, checkpoints: TorchCheckpoints) -> tuple[int, dict[str, Any]]:
        """(steps done, the live state): what is saved lies in the decoder and the optimiser."""
        names = [slot.name for slot in self._slots]
        parameters = [slot.parameter for slot in self._slots]
        state = {
            "trainable": dict(zip(names, parameters, strict=True)),
            "optimizer": {
                moment: dict(zip(names, values, strict=True))
                for moment, values in self._optimizer.moments.items()
            },
        }
        done = checkpoints.latest()
        if done is None:
            return 0, state
        checkpoints.restore(done, state)
        self._optimizer.count = done
        return done, state

    def _result(self, last: dict[str, Any]) -> dict:
        """The tree that the fit gives: the last, or the best by the held-out loss."""
        if self.settings.keep == "best":
            self.best.restore(self.course.best_step, last)
        return read_slots(self._slots)
