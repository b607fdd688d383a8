"""Checkpoints of a torch fit: safetensors and JSON, no pickle.

    FOLDER/00000012/state.safetensors   every tensor of the state after 12 steps
    FOLDER/00000012/meta.json           what must be equal for a resume to be exact

A checkpoint is renamed into place when it is complete, so a kill leaves the one before.
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
from selfevo_jax.weights.storage import atomic_folder

STATE, META = "state.safetensors", "meta.json"


class TorchCheckpoints:
    """What `learn.checkpoints.Checkpoints` is, for nested dicts of tensors."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, keep: int = 2):
        # As it will be read back, so that tuples and lists compare equal.
        self._folder, self._keep = Path(folder), keep
        self._settings = json.loads(json.dumps(dict(settings)))

    def latest(self) -> int | None:
        """The number of steps done in the newest complete checkpoint, None if there is none."""
        return max(self._steps(), default=None)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Saves a tree of tensors as the state after `step` steps, and drops the oldest ones."""
        if step in self._steps():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: value.detach().cpu().contiguous()
            for name, value in flatten_dict(dict(state), sep=" ").items()
        }
        with atomic_folder(self._path(step)) as fresh:
            safetensors.torch.save_file(tensors, fresh / STATE)
            (fresh / META).write_text(json.dumps({"settings": self._settings}, indent=1))
        for old in sorted(self._steps())[: -self._keep]:
            shutil.rmtree(self._path(old))

    def restore(self, step: int, like: Mapping[str, Any]) -> Mapping[str, Any]:
        """Copies the state saved after `step` steps into the tensors of `like`, which it returns.

        Raises UserError when it was made with other settings.
        """
        folder = self._path(step)
        self._refuse_others(json.loads((folder / META).read_text())["settings"])
        saved = safetensors.torch.load_file(folder / STATE)
        into = flatten_dict(dict(like), sep=" ")
        if saved.keys() != into.keys():
            odd = sorted(saved.keys() ^ into.keys())[0]
            raise UserError(f"{folder}: tensor {odd!r} does not fit this fit; use another folder")
        with torch.no_grad():
            for name, value in into.items():
                value.copy_(saved[name])
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
