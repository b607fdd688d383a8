"""What a training is: the run's objective and settings, with what a stage changes of them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from selfevo_jax.evolve.policy import Policy
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


@dataclass(frozen=True)
class Fitting:
    """One training of a run: how, from which policy, compared with which, and where it is kept.

    `folder` gets adapter/, metrics.jsonl and what a resume needs; `store` keeps the reference's
    log-probs for every fitting of the run. `carry`: see `Run.train`.
    """

    training: Training
    start: Policy
    reference: Policy
    folder: Path
    store: Path
    carry: bool = False

    @property
    def carried(self) -> Carried | None:
        """The optimiser's state kept beside the adapter to start from, and the one to keep."""
        if not self.carry:
            return None
        before = self.start.adapter and self.start.adapter.parent / OPTIMIZER
        return Carried(before if before and before.exists() else None, self.folder / OPTIMIZER)

    def lineage(self) -> dict[str, Any]:
        """What the adapter keeps of it: its round and stage, and the policies behind it."""
        known = {
            name: {"policy": policy.name, "hash": policy.hash}
            for name, policy in (("start", self.start), ("reference", self.reference))
        }
        return {"round": self.folder.parent.name, "stage": self.folder.name, **known}


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


def _given(changes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (changes or {}).items() if value is not None}
