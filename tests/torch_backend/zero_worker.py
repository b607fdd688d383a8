"""Tiny fits in one of several processes, for the tests of DeepSpeed.

    torchrun --nproc-per-node 2 zero_worker.py FOLDER CONFIG:FIT[:STEP] ...

CONFIG is a file of third_party/deepspeed, or jax (without torchrun); FIT is dpo, sft, remat
(dpo with recomputed layers) or full (sft of all parameters).
Process 0 writes FOLDER/CONFIG-FIT/trained.npz; with STEP it kills itself (SIGKILL) after the
metrics of that step.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import torch

from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings, Trainer
from selfevo_jax.learn.trainer import JaxTrainer
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.parallel.rules import path_name
from selfevo_jax.text.render import TokenExample, TokenSpan
from selfevo_jax.torch_backend.group import zero_settings
from selfevo_jax.torch_backend.model import Decoder
from selfevo_jax.torch_backend.trainer import TorchTrainer
from selfevo_jax.torch_backend.zero import join_group, make_zero

CONFIGS = Path(__file__).parents[2] / "third_party" / "deepspeed"
TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128,
)  # fmt: skip
LORA = FitSettings(
    steps=20, batch_size=4, micro_rows=2, row_length=48, lr=1e-2, lora=LoraConfig(rank=4),
    checkpoint_every=6,
)  # fmt: skip
FITS = {
    "dpo": (Objective("dpo"), LORA),
    "sft": (Objective("sft"), LORA),
    "remat": (Objective("dpo"), LORA),
    "full": (Objective("sft"), replace(LORA, lora=None, lr=1e-3, weight_decay=0.1)),
}


def params() -> dict:
    """The base's parameters."""
    return init_params(TINY, jax.random.key(1))


def pairs() -> list[TokenExample]:
    """12 pairs of random tokens and lengths."""
    rng = np.random.default_rng(5)

    def some(low: int, high: int, loss: bool) -> TokenSpan:
        tokens = rng.integers(1, TINY.vocab_size, rng.integers(low, high)).astype(np.int32)
        return TokenSpan(tokens, np.full(len(tokens), loss))

    return [
        TokenExample(f"p{i}", some(2, 14, False), (some(1, 12, True), some(1, 12, True)))
        for i in range(12)
    ]


def trainer_of(config: str, remat: str) -> Trainer:
    """JAX's, or torch's under DeepSpeed with a configuration."""
    if config == "jax":
        return JaxTrainer(TINY, params(), base_hash="tiny")
    settings = zero_settings(CONFIGS / f"{config}.json")
    # Else so small parameters would never be divided.
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return TorchTrainer(
        Decoder.from_tree(TINY, params(), Compute(remat=remat), "cpu"),
        base_hash="tiny",
        engine=make_zero(settings),
        processes=torch.distributed.get_world_size(),
    )


def one(config: str, fit: str, folder: Path, first: bool, last: int | None = None) -> None:
    """One fit; kills itself after step `last` in the first process."""

    def maybe_die(row) -> None:
        if first and row["step"] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    remat = "full" if fit == "remat" else "none"
    result = trainer_of(config, remat).fit(pairs(), *FITS[fit], folder, on_step=maybe_die)
    if first:
        leaves = jax.tree_util.tree_flatten_with_path(result.trained)[0]
        np.savez(folder / "trained.npz", **{path_name(path): leaf for path, leaf in leaves})


def main(folder: Path, jobs: list[str]) -> None:
    rank = os.environ.get("RANK")
    torch.set_num_threads(1)
    if rank is not None:
        join_group(torch.device("cpu"))
    for job in jobs:
        config, fit, *last = job.split(":")
        one(config, fit, folder / f"{config}-{fit}", rank in (None, "0"), *map(int, last))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
