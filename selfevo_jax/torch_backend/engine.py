"""What computes the steps of a fit: one process here, or several under DeepSpeed (`zero.py`).

An engine owns the live state. `Cell`s name its parts, for checkpoints and for what is read out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from selfevo_jax.learn.batches import MicroBatch
from selfevo_jax.learn.step import Frozen
from selfevo_jax.torch_backend.forward import sequence_sums
from selfevo_jax.torch_backend.model import Decoder
from selfevo_jax.torch_backend.optimizer import Optimizer


@dataclass(frozen=True)
class Cell:
    """A parameter that is trained (`moment` None), or a moment of it."""

    parameter: torch.nn.Parameter
    moment: str | None = None


class Engine(Protocol):
    """Forward, backward and update. Every process calls the same methods in the same order."""

    rank: int
    size: int

    def forward(self, micro: MicroBatch) -> Tensor:
        """Log-prob sums [b, e, k] of these rows, with whatever adapter acts."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of this process's part of a sum; `last` of a batch."""
        ...

    def update(self, rate: float) -> float:
        """One step at a learning rate: the norm of the whole gradient before clipping."""
        ...

    def share(self, micro: MicroBatch, frozen: Frozen) -> tuple[MicroBatch, Frozen]:
        """This process's rows."""
        ...

    def gathered(self, sums_bek: Tensor) -> np.ndarray:
        """The rows of all processes, from each one's own."""
        ...

    def added(self, sums: dict[str, float]) -> dict[str, float]:
        """Sums over all processes."""
        ...

    def same(self, number: int) -> int:
        """The first process's number."""
        ...

    def read(self, cell: Cell) -> Tensor:
        """The whole tensor, in the precision it is updated in."""
        ...

    def write(self, cell: Cell, value: Tensor) -> None:
        """Sets it."""
        ...

    def weights(self, parameter: torch.nn.Parameter) -> Tensor:
        """A copy of a parameter as the forward pass uses it."""
        ...

    def lend(self, parameter: torch.nn.Parameter, value: Tensor) -> None:
        """Sets what the forward pass uses, until the next update."""
        ...


class Alone:
    """One process without DeepSpeed."""

    rank, size = 0, 1

    def __init__(self, decoder: Decoder, optimizer: Optimizer):
        self._decoder, self._optimizer = decoder, optimizer
        for group in optimizer.param_groups:
            optimizer.begin(group["params"])

    def forward(self, micro: MicroBatch) -> Tensor:
        """See `Engine.forward`."""
        return sequence_sums(self._decoder, micro)

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Engine.backward`."""
        loss.backward()

    def update(self, rate: float) -> float:
        """See `Engine.update`."""
        self._optimizer.lr = rate
        return float(self._optimizer.update())

    def share(self, micro: MicroBatch, frozen: Frozen) -> tuple[MicroBatch, Frozen]:
        """All rows."""
        return micro, frozen

    def gathered(self, sums_bek: Tensor) -> np.ndarray:
        """These rows."""
        return sums_bek.cpu().numpy()

    def added(self, sums: dict[str, float]) -> dict[str, float]:
        """These sums."""
        return sums

    def same(self, number: int) -> int:
        """This number."""
        return number

    def read(self, cell: Cell) -> Tensor:
        """See `Engine.read`."""
        return self._tensor(cell).detach()

    @torch.no_grad()
    def write(self, cell: Cell, value: Tensor) -> None:
        """See `Engine.write`."""
        self._tensor(cell).copy_(value)

    def weights(self, parameter: torch.nn.Parameter) -> Tensor:
        """See `Engine.weights`."""
        return parameter.detach().clone()

    @torch.no_grad()
    def lend(self, parameter: torch.nn.Parameter, value: Tensor) -> None:
        """See `Engine.lend`."""
        parameter.copy_(value)

    def _tensor(self, cell: Cell) -> Tensor:
        if cell.moment is None:
            return cell.parameter
        return self._optimizer.state[cell.parameter][cell.moment]
