"""One process of a training: `python -m selfevo_jax.torch_backend.worker FOLDER`, by the agent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import get_args

import torch
from ml_collections import FrozenConfigDict
from rich.console import Console
from torch.distributed.elastic.multiprocessing.errors import record

from selfevo_jax.evolve.files import read_json, write_json
from selfevo_jax.evolve.lesson_text import Trainable
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.training import Fitting, Training
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.torch_backend.agent import end_with_launcher
from selfevo_jax.torch_backend.backend import TorchBackend
from selfevo_jax.torch_backend.group import ALONE, zero_settings
from selfevo_jax.torch_backend.wire import policy_from
from selfevo_jax.torch_backend.zero import join_group, make_divide, make_zero


@record
def main(folder: Path) -> None:
    """Trains with the other processes; the first one writes the adapter and the result."""
    end_with_launcher()
    job = read_json(folder / "job.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    join_group(device)
    first = torch.distributed.get_rank() == 0
    config, progress = FrozenConfigDict(job["config"]), Progress(Console(file=sys.stdout))
    backend = TorchBackend(config, progress, group=ALONE)
    settings = zero_settings(Path(job["deepspeed"]))
    backend.model.divide = make_divide(settings)
    counts = backend.fit_here(
        read_examples(folder / "examples.jsonl", job["kind"]),
        fitting_from(job["fitting"]),
        lambda step, text: None,
        engine=make_zero(settings),
        processes=torch.distributed.get_world_size(),
        writes=first,
    )
    if first:
        write_json(folder / "result.json", counts)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def read_examples(path: Path, kind: str) -> list[Trainable]:
    """The records that the launcher wrote."""
    of = {of.__name__: of for of in get_args(Trainable)}[kind]
    return [of.from_json(json.loads(line)) for line in path.read_text().splitlines()]


def fitting_from(saved: dict) -> Fitting:
    """A `Fitting` from its fields, as `dataclasses.asdict` gives them, paths as text."""
    objective, fit = saved["training"]["objective"], saved["training"]["fit"]
    settings = FitSettings(**fit | {"lora": LoraConfig(**fit["lora"])})
    return Fitting(
        Training(Objective(**objective), settings),
        *(policy_from(saved[name]) for name in ("start", "reference")),
        *(Path(saved[name]) for name in ("folder", "store")),
        saved["carry"],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
