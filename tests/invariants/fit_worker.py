"""One tiny fit in a process of its own, for the tests that kill it or give it more devices.

    python fit_worker.py FOLDER MESH EVERY [die-after-STEP]

Writes FOLDER/gradient.npz (of the first batch, before any step) and, at the end,
FOLDER/adapter.npz; with die-after-STEP it kills itself (SIGKILL) after that step's metrics.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from selfevo_jax.learn.batches import Batches
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.optimizer import optimizer
from selfevo_jax.learn.step import Frozen, Recipe, Steps
from selfevo_jax.learn.trainer import FitSettings, JaxTrainer
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import path_name, shardings
from selfevo_jax.text.render import TokenExample, TokenSpan

CONFIG = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128,
)  # fmt: skip
LORA = LoraConfig(rank=4, dropout=0.1)


def pairs(count: int = 20) -> list[TokenExample]:
    rng = np.random.default_rng(11)

    def span(low: int, high: int, loss: bool) -> TokenSpan:
        tokens = rng.integers(1, CONFIG.vocab_size, rng.integers(low, high)).astype(np.int32)
        return TokenSpan(tokens, np.full(len(tokens), loss))

    return [
        TokenExample(f"p{i}", span(2, 14, False), (span(1, 12, True), span(1, 12, True)))
        for i in range(count)
    ]


def save(path: Path, tree) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    np.savez(path, **{path_name(path): np.asarray(leaf) for path, leaf in leaves})


def first_gradient(trainer: JaxTrainer):
    """The gradient of one batch in the adapter, at an adapter whose `b` is not zero."""
    mesh, objective = trainer.base.mesh, Objective("dpo", sft_weight=0.1)
    tree = jax.tree.map(lambda leaf: leaf + 0.05, init_lora(CONFIG, LORA, jax.random.key(2)))
    tree = jax.device_put(tree, shardings(tree, mesh))
    optimizer_ = optimizer("adamw")
    steps = Steps(Recipe(CONFIG, objective, LORA), optimizer_, mesh, tree)
    plan = Batches(pairs(), batch_size=20, steps=1, seed=0, rows=4, row_length=64)
    micros = [
        (micro, Frozen(np.full_like(micro.counts_bek, -20), np.zeros_like(micro.counts_bek)))
        for micro in plan.micro_batches(0)
    ]
    return steps.gradient(tree, trainer.base.params, micros, jax.random.key(0))[0]


def main(folder: Path, mesh: str, every: int, last: int | None) -> None:
    trainer = JaxTrainer(
        CONFIG, init_params(CONFIG, jax.random.key(1)), base_hash="tiny", mesh=make_mesh(mesh)
    )
    save(folder / "gradient.npz", first_gradient(trainer))
    settings = FitSettings(
        epochs=3,
        batch_size=8,
        micro_rows=4,
        row_length=64,
        lr=3e-3,
        checkpoint_every=every,
        lora=LORA,
    )

    def maybe_die(row) -> None:
        if row["step"] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    objective = Objective("dpo", sft_weight=0.1)
    fit = trainer.fit(pairs(), objective, settings, folder, on_step=maybe_die)
    save(folder / "adapter.npz", fit.trained)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if sys.argv[4:] else None
    )
