"""Tiny fits in two processes, for the tests of DeepSpeed.

    python zero_worker.py        and then, on standard input: FOLDER CONFIG:FIT[:STEP] ...

For each line two processes are forked, which do the jobs of the line together, one after another:
so torch and DeepSpeed are imported once. When one of them fails, the other one is ended. The
answer is `DONE` with both exit codes; what they printed is in FOLDER/RANK.log.

CONFIG is a file of third_party/deepspeed, or jax, or alone (torch without DeepSpeed): jobs that one
of the two processes does by itself. FIT is dpo, sft, remat (dpo with recomputed layers), bf16 (dpo
on a base in bfloat16), full (sft of all parameters) or divided (dpo against an adapter, on a base
that torch reads in parts).
Process 0 writes FOLDER/CONFIG-FIT/trained.npz; with STEP it kills itself (SIGKILL) after the
metrics of that step.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings, Trainer
from selfevo_jax.learn.trainer import JaxTrainer
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import Adapter, LoraConfig, adapter, init_lora
from selfevo_jax.parallel.rules import path_name
from selfevo_jax.text.render import TokenExample, TokenSpan
from selfevo_jax.torch_backend.group import zero_settings
from selfevo_jax.torch_backend.model import Decoder
from selfevo_jax.torch_backend.trainer import TorchTrainer
from selfevo_jax.torch_backend.zero import join_group, make_divide, make_zero

CONFIGS = Path(__file__).parents[2] / "third_party" / "deepspeed"
TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128,
)  # fmt: skip
# Few targets: under ZeRO-3 every module costs more than what it computes here.
LORA = FitSettings(
    steps=20, batch_size=4, micro_rows=2, row_length=48, lr=1e-2, checkpoint_every=7,
    lora=LoraConfig(rank=4, targets=r"layers/(attn/q_proj|mlp/down_proj)"),
)  # fmt: skip
FITS = {
    "dpo": (Objective("dpo"), LORA),
    "sft": (Objective("sft"), LORA),
    "remat": (Objective("dpo"), LORA),
    "bf16": (Objective("dpo"), replace(LORA, lr=1e-3)),
    "divided": (Objective("dpo"), LORA),
    "full": (Objective("sft"), replace(LORA, lora=None, lr=1e-3, weight_decay=0.1)),
}


COMPUTE = {"remat": Compute(remat="full"), "bf16": Compute(jnp.bfloat16)}


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


def reference() -> Adapter:
    """An adapter that is not zero, other than the one that is trained."""
    lora = LoraConfig(rank=2, targets=r"layers/attn/(q|v)_proj")
    tree = init_lora(TINY, lora, jax.random.key(4))
    return adapter(jax.tree.map(lambda leaf: leaf + 0.1, tree), lora)


def trainer_of(config: str, fit: str) -> Trainer:
    """JAX's, or torch's: alone, or under DeepSpeed with a configuration."""
    compute = COMPUTE.get(fit, Compute())
    params = init_params(TINY, jax.random.key(1), compute.dtype)
    if config == "jax":
        return JaxTrainer(TINY, params, base_hash="tiny", compute=compute)
    if config == "alone":
        return TorchTrainer(Decoder.from_tree(TINY, params, compute, "cpu"), base_hash="tiny")
    settings = zero_settings(CONFIGS / f"{config}.json")
    # Else so small parameters would never be divided.
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    divide = make_divide(settings) if fit == "divided" else None
    decoder = Decoder.from_tree(TINY, params, compute, "cpu", divide=divide)
    if fit == "divided":
        held = sum(getattr(p, "ds_tensor", p).numel() for p in decoder.module.parameters())
        whole = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert held == whole / torch.distributed.get_world_size(), (held, whole)
        assert not any(p.numel() for p in decoder.module.parameters())
    return TorchTrainer(
        decoder,
        base_hash="tiny",
        engine=make_zero(settings),
        processes=torch.distributed.get_world_size(),
    )


def one(config: str, fit: str, folder: Path, first: bool, last: int | None = None) -> None:
    """One fit; kills itself after step `last` in the first process."""

    def maybe_die(row) -> None:
        if first and row["step"] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    result = trainer_of(config, fit).fit(
        pairs(), *FITS[fit], folder, on_step=maybe_die,
        reference=reference() if fit == "divided" else None,
    )  # fmt: skip
    if first:
        leaves = jax.tree_util.tree_flatten_with_path(result.trained)[0]
        np.savez(folder / "trained.npz", **{path_name(path): leaf for path, leaf in leaves})


def work(rank: int, port: int, folder: Path, jobs: list[str]) -> None:
    """One of the two processes."""
    sys.stdout = sys.stderr = (folder / f"{rank}.log").open("a", buffering=1)
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(own[name]) for name in own}}
    torch.set_num_threads(1)
    join_group(torch.device("cpu"))
    for number, job in enumerate(jobs):
        config, fit, *last = job.split(":")
        place = folder / f"{config}-{fit}"
        if config not in ("jax", "alone"):
            one(config, fit, place, rank == 0, *map(int, last))
        elif number % 2 == rank:
            one(config, fit, place, first=True)


def together(folder: Path, jobs: list[str]) -> list[int | None]:
    """The exit codes of two processes with these jobs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=work, args=(rank, port, folder, jobs)) for rank in range(2)]
    for process in both:
        process.start()
    running = {process.sentinel: process for process in both}
    while running:
        for sentinel in wait(list(running)):
            ended = running.pop(sentinel)
            ended.join()
            if ended.exitcode:
                for other in running.values():
                    other.kill()
    return [process.exitcode for process in both]


if __name__ == "__main__":
    for line in sys.stdin:
        folder, *jobs = line.split()
        print(f"\nDONE {json.dumps(together(Path(folder), jobs))}", flush=True)
