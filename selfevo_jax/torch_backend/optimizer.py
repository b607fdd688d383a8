"""AdamW and Lion as optax computes them, on lists of tensors, with clipping to a global norm.

optax, not `torch.optim`: epsilon, the order of decay and step, and clipping are those of
`learn/optimizer.py`, so that a fit takes the same course on either backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from selfevo_jax.errors import UserError

MOMENTS = {"adamw": ("mu", "nu"), "lion": ("mu",)}
_ADAM, _LION, _EPSILON = (0.9, 0.999), (0.9, 0.99), 1e-8


class Optimizer:
    """State and update rule for `parameters`; `decayed[i]`: whether decay acts on the i-th.

    `rate` maps the number of steps done to a learning rate. Moments have their parameter's type,
    as in optax. Raises UserError for an optimiser that only the JAX backend has.
    """

    def __init__(
        self,
        name: str,
        parameters: Sequence[Tensor],
        decayed: Sequence[bool],
        rate: Callable[[int], float],
        *,
        weight_decay: float = 0.0,
        clip: float | None = 1.0,
    ):
        if name not in MOMENTS:
            raise UserError(
                f"learn.optimizer {name!r} is not there with backend=torch: use "
                f"{' or '.join(MOMENTS)}, or backend=jax"
            )
        self._name, self._rate, self._clip = name, rate, clip
        self._parameters = list(parameters)
        self._decay = [weight_decay if is_decayed else 0.0 for is_decayed in decayed]
        self.moments = {
            moment: [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
            for moment in MOMENTS[name]
        }
        self.count = 0

    @torch.no_grad()
    def update(self) -> Tensor:
        """One step from the parameters' `grad`, which is then dropped: its norm before clipping."""
        grads = [p.grad for p in self._parameters]
        norm = torch.stack([grad.float().square().sum() for grad in grads]).sum().sqrt()
        if self._clip is not None and norm >= self._clip:
            grads = [grad / norm.to(grad.dtype) * self._clip for grad in grads]
        step = {"adamw": self._adamw, "lion": self._lion}[self._name]
        lr = float(self._rate(self.count))
        self.count += 1
        for index, (parameter, grad) in enumerate(zip(self._parameters, grads, strict=True)):
            direction = step(index, grad)
            if self._decay[index]:
                direction = direction + self._decay[index] * parameter
            parameter.sub_(lr * direction)
            parameter.grad = None
        return norm

    def _adamw(self, index: int, grad: Tensor) -> Tensor:
        (b1, b2), mu, nu = _ADAM, self.moments["mu"][index], self.moments["nu"][index]
        mu.mul_(b1).add_(grad, alpha=1 - b1)
        nu.mul_(b2).addcmul_(grad, grad, value=1 - b2)
        first, second = (_correction(decay, self.count) for decay in _ADAM)
        return (mu / first) / ((nu / second).sqrt() + _EPSILON)

    def _lion(self, index: int, grad: Tensor) -> Tensor:
        (b1, b2), mu = _LION, self.moments["mu"][index]
        direction = (b1 * mu + (1 - b1) * grad).sign()
        mu.mul_(b2).add_(grad, alpha=1 - b2)
        return direction


def _correction(decay: float, count: int) -> float:
    """1 - decay^count in float32, as optax has it: at first 1e-5 off the true value."""
    return float(np.float32(1) - np.float32(decay) ** np.float32(count))
