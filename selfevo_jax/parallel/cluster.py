"""How the hosts of a run find each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from selfevo_jax.errors import UserError

DETECTED = ("auto", "slurm")


@dataclass(frozen=True)
class Cluster:
    """Where the hosts meet.

    `where`: `slurm` (variables of the job step), `auto` (a TPU VM's metadata, or Slurm), or the
    address HOST:PORT of host 0, with the number of `hosts` and which one this is (`host`).
    Raises `UserError` for anything else.
    """

    where: str
    hosts: int | None = None
    host: int | None = None

    def __post_init__(self) -> None:
        told = self.hosts is not None and self.host is not None
        if self.where in DETECTED:
            if self.hosts is not None or self.host is not None:
                raise UserError(f"--cluster={self.where} finds --hosts and --host itself")
        elif not self.where.rpartition(":")[2].isdigit() or ":" not in self.where:
            raise UserError(f"--cluster={self.where}: use {', '.join(DETECTED)} or HOST:PORT")
        elif not told or not 0 <= self.host < self.hosts:
            raise UserError(
                f"--cluster={self.where} needs --hosts=N and --host=I, with I from 0 to N - 1"
            )

    def arguments(self) -> dict[str, Any]:
        """For `jax.distributed.initialize`."""
        if self.where not in DETECTED:
            return {
                "coordinator_address": self.where,
                "num_processes": self.hosts,
                "process_id": self.host,
                "cluster_detection_method": "deactivate",
            }
        method = "slurm" if self.where == "slurm" else None
        return {"cluster_detection_method": method, "local_device_ids": _slurm_devices()}


def _slurm_devices() -> list[int] | None:
    """All GPUs of the node for the one task that runs there; JAX would give it the first."""
    gpus, tasks = os.environ.get("SLURM_GPUS_ON_NODE"), os.environ.get("SLURM_NTASKS_PER_NODE")
    return list(range(int(gpus))) if gpus and tasks == "1" else None
