"""Checkpoints of a torch fit: safetensors and JSON, no pickle.

    FOLDER/00000012/state.safetensors   every tensor of the state after 12 steps
    FOLDER/00000012/meta.json           its hash, and what must be equal for a resume to be exact

A checkpoint is renamed into place when it is complete, so a kill leaves the one before. Tensors
are saved whole, under DeepSpeed too: a fit goes on with any number of processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from flax.traverse_util import flatten_dict

from selfevo_jax.errors import UserError
from selfevo_jax.learn.carried import refuse_other
from selfevo_jax.torch_backend.engine import Cell, Engine
from selfevo_jax.weights.storage import atomic_file, atomic_folder, sha256_of_file

STATE, META = "state.safetensors", "meta.json"
STEPS = "steps"  # a tensor of its own in a file of moments


class TorchCheckpoints:
    """What `learn.checkpoints.Checkpoints` is, for nested dicts of an engine's cells."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], engine: Engine, *, keep: int = 2):
        self._folder, self._engine, self._keep = Path(folder), engine, keep
        # As it will be read back, so that tuples and lists compare equal.
        self._settings = json.loads(json.dumps(dict(settings)))

    def latest(self) -> int | None:
        """The number of steps done in the newest complete checkpoint, None if there is none."""
        return self._engine.same(max(self._steps(), default=0)) or None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Saves a tree of cells as the state after `step` steps, and drops the oldest ones."""
        if self._engine.same(step in self._steps()):
            return
        tensors = {}
        for name, cell in _named(state).items():
            value = self._engine.read(cell)  # a joint work of all processes
            if self._engine.rank == 0:
                tensors[name] = value.cpu().contiguous()
        if self._engine.rank == 0:
            self._write(step, tensors)

    def _write(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(self._path(step)) as fresh:
            safetensors.torch.save_file(dict(tensors), fresh / STATE)
            meta = {"settings": self._settings, "sha256": sha256_of_file(fresh / STATE)}
            (fresh / META).write_text(json.dumps(meta, indent=1))
        for old in sorted(self._steps())[: -self._keep]:
            shutil.rmtree(self._path(old))

    def restore(self, step: int, like: Mapping[str, Any]) -> Mapping[str, Any]:
        """Copies the state saved after `step` steps into the cells of `like`, which it returns.

        Raises UserError when it was made with other settings or its file is damaged.
        """
        folder = self._path(step)
        meta = json.loads((folder / META).read_text())
        self._refuse_others(meta["settings"])
        if sha256_of_file(folder / STATE) != meta["sha256"]:
            raise UserError(
                f"{folder / STATE} is damaged: it has not the hash that {META} gives. Delete "
                f"{folder}, and the fit goes on from the checkpoint before"
            )
        into = _named(like)
        with safetensors.safe_open(folder / STATE, "pt") as saved:
            if odd := sorted(saved.keys() ^ into.keys()):
                raise UserError(
                    f"{folder}: tensor {odd[0]!r} does not fit this fit; use another folder"
                )
            for name, cell in into.items():
                self._engine.write(cell, saved.get_tensor(name))
        return like

    def preempted(self, step: int) -> bool:
        """Whether the machine said that it will be taken away: not told here."""
        return False

    def wait(self) -> None:
        """Nothing to wait for: `save` returns when all is on disk."""

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}"

    def _steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]

    def _refuse_others(self, saved: Mapping[str, Any]) -> None:
        mine = self._settings
        changed = [
            f"{name} (saved {saved.get(name)!r}, now {mine.get(name)!r})"
            for name in sorted(saved.keys() | mine.keys())
            if saved.get(name) != mine.get(name)
        ]
        if changed:
            raise UserError(
                f"{self._folder} holds a fit with other settings, so it cannot go on: "
                + "; ".join(changed)
                + ". Use the old settings or another folder"
            )


def leave_moments(path: Path, moments: Mapping[str, Any], steps: int, engine: Engine) -> None:
    """Writes moments that remember `steps` steps; all processes call, and the first one writes."""
    tensors = {name: engine.read(cell).cpu().contiguous() for name, cell in _named(moments).items()}
    if engine.rank == 0:
        with atomic_file(path) as unfinished:
            safetensors.torch.save_file(tensors | {STEPS: torch.tensor(steps)}, unfinished)


def go_on_with(path: Path, moments: Mapping[str, Any], engine: Engine) -> int:
    """Puts what `leave_moments` has written into the cells; how many steps they remember.

    Raises UserError where the file was left by another optimiser, or for other parameters.
    """
    saved, into = safetensors.torch.load_file(path), _named(moments)
    steps = int(saved.pop(STEPS, torch.tensor(0)))
    refuse_other(path, set(saved), set(into))
    for name, cell in into.items():
        engine.write(cell, saved[name])
    return steps


def _named(state: Mapping[str, Any]) -> dict[str, Cell]:
    return flatten_dict(dict(state), sep=" ")
