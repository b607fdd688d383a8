"""What a method sees of training: settings, the `Trainer` protocol, and what a fit gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from selfevo_jax.errors import UserError
from selfevo_jax.learn.batches import steps_per_epoch
from selfevo_jax.learn.carried import Carried
from selfevo_jax.learn.losses import Objective
from selfevo_jax.models.lora import Adapter, LoraConfig
from selfevo_jax.text.render import TokenExample

_WATCHING = ("checkpoint_every", "checkpoint_seconds", "profile_steps")


@dataclass(frozen=True)
class FitSettings:
    """How to fit.

    epochs or steps  length of the fit; `steps`, where set, wins
    batch_size       examples of an optimiser step
    micro_rows       packed rows computed at a time (rounded up to what the mesh splits evenly)
    row_length       tokens of a packed row; None chooses what wastes least
    schedule         constant | linear | cosine, after a rise over the `warmup` share of the steps
    clip             largest global norm of the gradient; None: no clipping
    lora             the adapter's shape; None trains all parameters
    checkpoint_every steps between checkpoints (the last step is always saved)
    checkpoint_seconds  and the most seconds between them
    profile_steps    steps of which a trace is kept, from the second on (0: none)
    optimizer        adamw | adafactor | lion
    eval_share       share of the prompts that is held out and only measured (0: none); all
                     examples of a prompt go to one side
    eval_every       steps between measurements (the last step is always measured)
    keep             last | best: the parameters that the fit gives, best by the held-out loss
    patience         stop after so many measurements without a better one (None: never)
    """

    epochs: int = 1
    steps: int | None = None
    batch_size: int = 8
    micro_rows: int = 1
    row_length: int | None = None
    lr: float = 1e-4
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float | None = 1.0
    seed: int = 0
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    checkpoint_every: int = 50
    checkpoint_seconds: float = 600.0
    profile_steps: int = 0
    optimizer: str = "adamw"
    eval_share: float = 0.0
    eval_every: int = 50
    keep: str = "last"
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_rows", "checkpoint_every", "eval_every"):
            if getattr(self, name) < 1:
                raise UserError(f"learn.{name} is {getattr(self, name)}: it must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise UserError(
                f"learn.steps is {self.steps}: it must be at least 1, or None to use epochs"
            )
        if self.profile_steps < 0:
            raise UserError(f"learn.profile_steps is {self.profile_steps}: 0 or more")
        if not 0 <= self.eval_share < 1:
            raise UserError(f"learn.eval_share is {self.eval_share}: it is a share, below 1")
        if self.keep not in ("last", "best"):
            raise UserError(f"learn.keep is {self.keep!r}: use last or best")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"learn.patience is {self.patience}: at least 1, or None for never")
        if not self.eval_share and (self.keep == "best" or self.patience is not None):
            raise UserError("learn.keep=best and learn.patience need learn.eval_share above 0")

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what a fit gives, as plain values."""
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in _WATCHING
        }

    def total_steps(self, examples: int) -> int:
        """Optimiser steps of a fit to that many examples."""
        return self.steps or self.epochs * steps_per_epoch(examples, self.batch_size)


@dataclass(frozen=True)
class FitResult:
    """What a fit gives. `trained` is a LoRA tree, or all parameters where `lora` is None.

    steps          optimiser steps taken: fewer than planned after an early stop
    best_step      steps after which `trained` was best, None without held-out prompts
    tokens         tokens computed (prompts once, no padding); seconds: wall clock of this call
    adapter_shift  largest change of a sequence's log-prob sum, over the first micro-batch
    """

    trained: dict
    lora: LoraConfig | None
    metrics: list[dict[str, Any]]
    steps: int
    tokens: int
    seconds: float
    adapter_shift: float
    best_step: int | None = None


class Trainer(Protocol):
    """All that a method sees of training."""

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
        """Trains and returns; `folder` keeps checkpoints and metrics and makes it resumable.

        start      the LoRA tree to go on from (None: a fresh one)
        reference  adapter of the frozen reference policy (None: the base itself)
        anchor     adapter of `inpo`'s second frozen policy (None: the base itself)
        store      folder of reference log-probs; fits that share it (rounds, sweeps over beta)
                   compute each only once (None: `folder`/reference)
        carried    where the optimiser's state comes from and goes to (None: fresh, and dropped)
        on_step    called with each step's metrics

        Raises `UserError` for examples that must not be trained on, a folder that holds another
        fit, a loss that is not finite, and a fit that changed nothing.
        """
        ...
