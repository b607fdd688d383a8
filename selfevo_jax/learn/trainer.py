"""Fits an adapter (or all parameters) to an objective; can be stopped anywhere and goes on.

    trainer = JaxTrainer(config, params, tokenizer, base_hash=files.hash)
    result = trainer.fit(examples, Objective("dpo", beta=0.1), FitSettings(epochs=2), folder)

The same call on the same folder after a kill continues from the last checkpoint and ends with
the same bits; on a finished folder it returns the result at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from selfevo_jax.learn.batches import check_examples
from selfevo_jax.learn.carried import Carried
from selfevo_jax.learn.fit import Base, Fit
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitResult, FitSettings, Trainer
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.lora import Adapter
from selfevo_jax.models.quantize import quantization, refuse_quantized
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings
from selfevo_jax.text.render import TokenExample

__all__ = ["FitResult", "FitSettings", "JaxTrainer", "Trainer"]


class JaxTrainer:
    """`Trainer` on a JAX mesh. `tokenizer` only gives its hash to the reference store."""

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        tokenizer: Any = None,
        *,
        base_hash: str,
        compute: Compute = Compute(),
        mesh: Mesh | None = None,
    ):
        mesh = make_mesh() if mesh is None else mesh
        placed = jax.device_put(params, shardings(params, mesh))
        tokenizer_hash = "none" if tokenizer is None else tokenizer.hash
        kind = quantization(params)  # other sums than those of the full base
        stored = base_hash if kind is None else f"{base_hash}+{kind}"
        self.base = Base(config, placed, compute, mesh, stored, tokenizer_hash)

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
        """See `Trainer.fit`."""
        if settings.lora is None:
            refuse_quantized(self.base.params, "train all parameters of this base")
        longest = self.base.config.max_position
        check_examples(
            examples, pairs=objective.pairs, max_length=longest, labels=objective.takes_labels
        )
        fit = Fit(
            self.base, examples, objective, settings, Path(folder), start, reference, anchor, store,
            carried,
        )  # fmt: skip
        return fit.run(on_step)
