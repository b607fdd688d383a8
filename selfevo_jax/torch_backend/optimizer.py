"""AdamW and Lion as optax computes them, as a torch optimiser, with clipping to a global norm.

optax, not `torch.optim`: epsilon, the order of decay and step, and clipping are those of
`learn/optimizer.py`, so that a fit takes the same course on either backend. Every rule works on
single elements, so DeepSpeed may hand it any pieces of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selfevo_jax.errors import UserError

MOMENTS = {"adamw": ("mu", "nu"), "lion": ("mu",)}
_ADAM, _LION, _EPSILON = (0.9, 0.999), (0.9, 0.99), 1e-8


class Optimizer(torch.optim.Optimizer):
    """State and update rule for `parameters`; `decayed[i]`: whether decay acts on the i-th.

    `lr` is the learning rate of the next step. Moments have their parameter's type, as in optax.
    Raises UserError for an optimiser that only the JAX backend has.
    """

    def __init__(
        self,
        name: str,
        parameters: Sequence[Tensor],
        decayed: Sequence[bool],
        *,
        weight_decay: float = 0.0,
        clip: float | None = 1.0,
    ):
        if name not in MOMENTS:
            raise UserError(
                f"learn.optimizer {name!r} is not there with backend=torch: use "
                f"{' or '.join(MOMENTS)}, or backend=jax"
            )
        self.moments, self.clip = MOMENTS[name], clip
        self._rule = {"adamw": self._adamw, "lion": self._lion}[name]
        self.lr, self.count = 0.0, 0
        self.earlier = 0  # steps of fits before this one that the moments remember
        groups: dict[float, list[Tensor]] = {}
        for parameter, is_decayed in zip(parameters, decayed, strict=True):
            groups.setdefault(weight_decay if is_decayed else 0.0, []).append(parameter)
        super().__init__(
            [{"params": of, "weight_decay": decay} for decay, of in groups.items()], {}
        )

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Moments of zero for these tensors, which get them at their first step at the latest."""
        for parameter in parameters:
            self.state[parameter] = {
                moment: torch.zeros_like(parameter, requires_grad=False) for moment in self.moments
            }

    @torch.no_grad()
    def update(self) -> Tensor:
        """One step from the parameters' `grad`, which is then dropped: its norm before clipping."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.float().square().sum() for p in parameters]).sum().sqrt()
        if self.clip is not None and norm >= self.clip:
            for parameter in parameters:
                parameter.grad = parameter.grad / norm.to(parameter.grad.dtype) * self.clip
        self.step()
        self.zero_grad()
        self.count += 1
        return norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """The update rule on what has a gradient, at `count` steps done, which it leaves."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter not in self.state:
                    self.begin([parameter])
                direction = self._rule(self.state[parameter], parameter.grad)
                if group["weight_decay"]:
                    direction = direction + group["weight_decay"] * parameter
                parameter.sub_(self.lr * direction)

    def _adamw(self, state: dict[str, Tensor], grad: Tensor) -> Tensor:
        (b1, b2), mu, nu = _ADAM, state["mu"], state["nu"]
        mu.mul_(b1).add_(grad, alpha=1 - b1)
        nu.mul_(b2).addcmul_(grad, grad, value=1 - b2)
        first, second = (_correction(decay, self.earlier + self.count + 1) for decay in _ADAM)
        return (mu / first) / ((nu / second).sqrt() + _EPSILON)

    def _lion(self, state: dict[str, Tensor], grad: Tensor) -> Tensor:
        (b1, b2), mu = _LION, state["mu"]
        direction = (b1 * mu + (1 - b1) * grad).sign()
        mu.mul_(b2).add_(grad, alpha=1 - b2)
        return direction


def _correction(decay: float, count: int) -> float:
    """1 - decay^count in float32, as optax has it: at first 1e-5 off the true value."""
    return float(np.float32(1) - np.float32(decay) ** np.float32(count))
