"""Which processes train together: chosen from the machine, a hostfile or a Slurm job, and why."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import selfevo_jax
from selfevo_jax.errors import UserError

INSTALLED = Path(__file__).with_name("deepspeed")  # where setup.py puts them in a wheel
CHECKOUT = Path(selfevo_jax.__file__).parents[1] / "third_party" / "deepspeed"
CONFIGS = INSTALLED if INSTALLED.is_dir() else CHECKOUT
NAMES = ("zero2", "zero2_offload", "zero3", "zero3_offload")
# What a file may not set, because the run's own configuration decides it.
OURS = (
    "bf16", "fp16", "gradient_accumulation_steps", "gradient_clipping", "optimizer", "scheduler",
    "train_batch_size", "train_micro_batch_size_per_gpu",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """`processes` on each of `hosts`, reached by `local`, `ssh` or `slurm`; `why` in words.

    deepspeed  the configuration file; None: one process without DeepSpeed
    """

    hosts: tuple[str, ...]
    processes: int
    reach: str
    why: str
    deepspeed: Path | None

    @property
    def size(self) -> int:
        """All processes."""
        return len(self.hosts) * self.processes

    @property
    def stage(self) -> int:
        """ZeRO's stage; 0 without DeepSpeed."""
        if self.deepspeed is None:
            return 0
        return zero_settings(self.deepspeed)["zero_optimization"]["stage"]

    def told(self) -> str:
        """One line for people."""
        where = f" on each of {len(self.hosts)} hosts" if len(self.hosts) > 1 else ""
        how = f"DeepSpeed with {self.deepspeed}" if self.deepspeed else "no DeepSpeed"
        return f"training: {_count(self.processes, 'process')}{where} ({self.why}), {how}"


ALONE = Group(("localhost",), 1, "local", "this one", None)


def choose_group(settings: Mapping, environment: Mapping[str, str], gpus: int) -> Group:
    """The group for the `torch` settings of a run, on a machine with so many GPUs.

    Raises UserError for a start by another launcher, and for files that do not serve.
    """
    if int(environment.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "selfevo starts the processes of a training itself: start it once, without torchrun, "
            "deepspeed or accelerate"
        )
    wanted = settings["processes"]
    if wanted < 0:
        raise UserError(f"--config.torch.processes={wanted}: 0 for one per GPU, or a number")
    here = wanted or max(gpus, 1)
    why = f"torch.processes={wanted}" if wanted else f"{_count(gpus, 'GPU')} here"
    hosts, reach = ("localhost",), "local"
    if settings["hostfile"]:
        hosts, slots = read_hostfile(Path(settings["hostfile"]))
        here, reach = wanted or slots, "ssh"
        why = f"{settings['hostfile']}: {_count(slots, 'slot')} a host"
    elif int(environment.get("SLURM_JOB_NUM_NODES", 1)) > 1:
        hosts, reach = slurm_hosts(environment["SLURM_JOB_NODELIST"]), "slurm"
        why = f"Slurm job of {len(hosts)} nodes, {why}"
    several = here * len(hosts) > 1
    file = config_file(settings["deepspeed"] or (NAMES[0] if several else ""))
    if file is not None:
        zero_settings(file)
        _need_deepspeed()
    return Group(hosts, here, reach, why, file)


def config_file(wanted: str) -> Path | None:
    """One of our configurations by its name, or any by its file; None for an empty name."""
    if not wanted:
        return None
    return CONFIGS / f"{wanted}.json" if wanted in NAMES else Path(wanted)


def read_hostfile(path: Path) -> tuple[tuple[str, ...], int]:
    """(hosts, slots of each) from lines `HOST slots=N`, as DeepSpeed and MPI have them.

    The first host is the one that this is started on. Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"hostfile {path} does not exist")
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        match = re.fullmatch(r"([A-Za-z0-9][\w.:-]*)\s+slots=([1-9]\d*)", line)
        if match is None or match[1] in found:
            raise UserError(f"{path}: {line!r} is not a new host with its slots: HOST slots=8")
        found[match[1]] = int(match[2])
    if len(set(found.values())) != 1:
        raise UserError(f"{path}: name at least one host, and give all the same number of slots")
    return tuple(found), next(iter(found.values()))


def slurm_hosts(nodes: str) -> tuple[str, ...]:
    """The hosts of a Slurm node list such as `gpu[01-04]`, by Slurm's own command."""
    if shutil.which("scontrol") is None:
        raise UserError("this is a Slurm job of several nodes, but scontrol is not on the PATH")
    command = ["scontrol", "show", "hostnames", nodes]
    return tuple(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def zero_settings(path: Path) -> dict[str, Any]:
    """A DeepSpeed configuration file. Raises UserError for what a run cannot use."""
    wanted = f"--config.torch.deepspeed takes a file of DeepSpeed's, or {', '.join(NAMES)}"
    if not path.is_file():
        raise UserError(f"there is no file {path}: {wanted}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        stage = settings["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a DeepSpeed configuration with a zero_optimization.stage ({error!r}): "
            + wanted
        ) from error
    if stage not in (2, 3):
        raise UserError(f"{path}: zero_optimization.stage is {stage!r}; use 2 or 3")
    if odd := sorted(settings.keys() & set(OURS)):
        raise UserError(f"{path} sets {odd[0]!r}, which the run's own settings decide: remove it")
    return settings


def _need_deepspeed() -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "training with several processes needs the package deepspeed, which is not installed: "
            "pip install 'selfevo_jax[torch,deepspeed]', or use --config.torch.processes=1"
        )


def _count(number: int, word: str) -> str:
    plural = {"process": "processes"}.get(word, f"{word}s")
    return f"{number} {word if number == 1 else plural}"
