"""The functions of a torch fit, in the places of `learn.step.Steps`.

What is trained are the parameters of `slots`, in place; the trees that `learn.fit` hands around
are not read, but for a whole base in `sums`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from selfevo_jax.learn.batches import MicroBatch
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.step import Frozen
from selfevo_jax.models.lora import Adapter
from selfevo_jax.torch_backend.engine import Engine
from selfevo_jax.torch_backend.lora import Slot, attached, read_slots, write_slots
from selfevo_jax.torch_backend.losses import Sequences, loss_terms, metric_sums
from selfevo_jax.torch_backend.model import Decoder


class TorchSteps:
    """Sums, gradients and updates of one fit; each process of the engine has its share of rows."""

    def __init__(
        self, decoder: Decoder, objective: Objective, slots: Sequence[Slot], engine: Engine
    ):
        self._decoder, self._objective, self._engine = decoder, objective, engine
        self._slots = list(slots)

    def sums(self, params: dict | None, adapter: Adapter | None, micro: MicroBatch) -> np.ndarray:
        """Log-prob sums [b, e, k] under the base, or under all parameters `params`; with an
        adapter, if given; dropout is off."""
        if params is None:
            return self._policy_sums(adapter, micro)
        engine = self._engine
        now = read_slots(self._slots, engine.weights)
        try:
            write_slots(self._slots, params, engine.lend)
            return self._policy_sums(adapter, micro)
        finally:
            write_slots(self._slots, now, engine.lend)

    def _policy_sums(self, adapter: Adapter | None, micro: MicroBatch) -> np.ndarray:
        with attached(self._decoder, adapter):
            return self._own_sums(micro)

    @torch.no_grad()
    def _own_sums(self, micro: MicroBatch) -> np.ndarray:
        self._decoder.module.eval()
        nothing = Frozen(*[np.zeros_like(micro.counts_bek)] * 2)
        mine, _ = self._engine.share(micro, nothing)
        return self._engine.gathered(self._engine.forward(mine))

    def gradient(
        self,
        trainable: Any,
        frozen: Any,
        batches: Sequence[tuple[MicroBatch, Frozen]],
        key: jax.Array,
        kl: float = 0.0,
    ) -> tuple[None, dict[str, float]]:
        """Adds up the gradient of a whole batch's loss in the parameters; sums of its metrics.

        `key` seeds dropout; the masks are torch's own, other ones than in JAX.
        """
        self._decoder.module.train()
        denominators = self._of_batch(batches)
        totals: dict[str, float] = {}
        for index, (micro, others) in enumerate(batches):
            words = np.asarray(jax.random.key_data(jax.random.fold_in(key, index)), np.int64)
            torch.manual_seed((int(words[0]) << 31 ^ int(words[1])) + self._engine.rank)
            loss, sums = self._loss(micro, others, denominators, kl)
            self._engine.backward(loss, last=index == len(batches) - 1)
            totals = _added(totals, sums)
        return None, self._engine.added(totals)

    @torch.no_grad()
    def evaluate(
        self, trainable: Any, frozen: Any, batches: Sequence[tuple[MicroBatch, Frozen]]
    ) -> dict[str, float]:
        """Sums of a whole batch's metrics, dropout off, KTO's KL taken as 0."""
        self._decoder.module.eval()
        denominators = self._of_batch(batches)
        totals: dict[str, float] = {}
        for micro, others in batches:
            totals = _added(totals, self._loss(micro, others, denominators, 0.0)[1])
        return self._engine.added(totals)

    def kl(
        self, trainable: Any, frozen: Any, batches: Sequence[tuple[MicroBatch, Frozen]]
    ) -> np.float32:
        """max(0, mean log-ratio to the reference) over a batch of mismatched completions."""
        ratio = count = 0.0
        for micro, others in batches:
            filled = micro.counts_bek > 0
            ratio += float(np.where(filled, self._own_sums(micro) - others.reference_bek, 0).sum())
            count += float(filled.sum())
        return np.float32(max(0.0, ratio / max(count, 1.0)))

    def update(
        self, trainable: Any, state: Any, grads: None, rate: float
    ) -> tuple[Any, Any, float]:
        """One optimiser step in place: (trainable, state, gradient norm before clipping)."""
        return trainable, state, self._engine.update(rate)

    def _of_batch(self, batches) -> list[Tensor]:
        """The denominators of the loss's terms over a whole batch."""
        found = []
        for micro, _ in batches:
            counts = torch.from_numpy(micro.counts_bek)
            zeros = torch.zeros_like(counts)
            terms = loss_terms(self._objective, Sequences(zeros, counts, zeros, zeros))
            found.append([term.denominator for term in terms])
        return [sum(column) for column in zip(*found, strict=True)]

    def _loss(
        self, micro: MicroBatch, others: Frozen, denominators: list[Tensor], kl: float
    ) -> tuple[Tensor, dict[str, float]]:
        """This process's part of the loss and of the metrics' sums."""
        device = self._decoder.device
        micro, others = self._engine.share(micro, others)
        given = (micro.counts_bek, others.reference_bek, others.anchor_bek)
        sequences = Sequences(
            self._engine.forward(micro), *(torch.from_numpy(x).to(device) for x in given)
        )
        terms = loss_terms(self._objective, sequences, float(kl))
        loss = sum(
            term.weight * term.numerator / float(total)
            for term, total in zip(terms, denominators, strict=True)
        )
        sums = {"loss": loss, **metric_sums(self._objective, sequences)}
        return loss, {name: float(value.detach()) for name, value in sums.items()}


def _added(totals: dict[str, float], sums: dict[str, float]) -> dict[str, float]:
    return {name: totals.get(name, 0.0) + value for name, value in sums.items()}
