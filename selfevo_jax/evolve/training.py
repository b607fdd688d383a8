"""What a training is: the run's objective and settings, with what a stage changes of them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from selfevo_jax.learn.carried import OPTIMIZER, Carried
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.models.lora import LoraConfig


@dataclass(frozen=True)
class Training:
    """An objective and how it is fitted."""

    objective: Objective
    fit: FitSettings

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, for the stage's key."""
        return {
            "objective": dataclasses.asdict(self.objective),
            "learn": self.fit.deciding(),
        }


def training_of(
    config: FrozenConfigDict,
    objective: Mapping[str, Any] | None = None,
    learn: Mapping[str, Any] | None = None,
) -> Training:
    """`config.objective`, `config.learn` and `config.lora` with a stage's changes on top.

    A change that is None keeps the run's value. Raises UserError for a value that cannot be.
    """
    learned = config.learn.to_dict() | _given(learn)
    learned["clip"] = learned["clip"] or None
    lora = LoraConfig(**config.lora.to_dict())
    fit = FitSettings(**learned, lora=lora, seed=config.seed)
    return Training(Objective(**(config.objective.to_dict() | _given(objective))), fit)


def carried_of(start: Path | None, folder: Path) -> Carried:
    """The optimiser's state beside the adapter `start`, where it was kept, and `folder`'s."""
    before = None if start is None else start.parent / OPTIMIZER
    return Carried(before if before and before.exists() else None, folder / OPTIMIZER)


def _given(changes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (changes or {}).items() if value is not None}
