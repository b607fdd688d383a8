"""Checkpoints of a fit: what is trained, the optimiser, and where in the data it stands.

Saved in the background, the newest few kept. A checkpoint counts only once it is complete (it is
renamed into place), so killing the process at any moment leaves the one before. Complete ones get
the checksums of their files (by host 0, when the next is saved or the fit ends), and are compared
with these before they are read; one that a kill left without them is read as it is. The library
behind this (orbax) is named in this file alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from selfevo_jax.errors import UserError
from selfevo_jax.parallel.distributed import agreed, first, from_first, on_host
from selfevo_jax.weights.storage import atomic_file, sha256_of_file

SUMS = "sums.json"


class Checkpoints:
    """The checkpoints in one folder. `settings` is what must be equal for a resume to be exact."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, keep: int = 2):
        self._folder, self._settings = Path(folder), dict(settings)
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(), options=self._options(keep), item_names=("state", "meta")
        )

    def latest(self) -> int | None:
        """The number of steps done in the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts saving a tree of arrays as the state after `step` steps; returns at once.

        Does nothing where that state is saved already (a resumed fit comes by again).
        """
        self._seal()
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({"settings": self._settings})
        )
        self._manager.save(step, args=items)

    def restore(self, step: int, like: Any) -> Any:
        """The state saved after `step` steps, placed and typed as the arrays of `like`.

        Raises `UserError` when it was made with other settings, or a file of it is damaged.
        """
        agreed(lambda: self._verify(step))
        self._refuse_others(step)
        abstract = jax.tree.map(_abstract, like)
        return self._restored(step, state=ocp.args.StandardRestore(abstract)).state

    def wait(self) -> None:
        """Waits until what is being saved is complete."""
        self._manager.wait_until_finished()
        self._seal()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self.wait()
        self._manager.close()

    def _options(self, keep: int) -> ocp.CheckpointManagerOptions:
        return ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )

    def _restored(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _seal(self) -> None:
        """Writes the checksums of complete checkpoints that have none."""
        for step in self._manager.all_steps() if first() else ():
            folder = self._folder / str(step)
            if folder.is_dir() and not (folder / SUMS).exists():
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                sums = {str(path.relative_to(folder)): sha256_of_file(path) for path in files}
                with atomic_file(folder / SUMS) as unfinished:
                    unfinished.write_text(json.dumps(sums))

    def _verify(self, step: int) -> None:
        folder = self._folder / str(step)
        if not (folder / SUMS).is_file():
            return
        try:
            sums = json.loads((folder / SUMS).read_bytes())
        except ValueError as error:
            raise UserError(_damaged(folder / SUMS, self._folder)) from error
        for name, expected in sums.items():
            path = folder / name
            if not path.is_file() or sha256_of_file(path) != expected:
                raise UserError(_damaged(path, self._folder))

    def _refuse_others(self, step: int) -> None:
        saved = self._restored(step, meta=ocp.args.JsonRestore()).meta["settings"]
        names = sorted(saved.keys() | self._settings.keys())
        changed = [
            f"{name} (saved {saved.get(name)!r}, now {self._settings.get(name)!r})"
            for name in names
            if saved.get(name) != self._settings.get(name)
        ]
        if changed:
            raise UserError(
                f"{self._folder} holds a fit with other settings, so it cannot go on: "
                + "; ".join(changed)
                + ". Use the old settings or another folder"
            )


class GatheredCheckpoints(Checkpoints):
    """`Checkpoints` of hosts that share no folder: host 0 alone has files, of what all gather.

    All hosts must call. A checkpoint of either kind is gone on with by the other.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, keep: int = 2):
        if first():
            folder.mkdir(parents=True, exist_ok=True)
            super().__init__(folder, settings, keep=keep)

    def latest(self) -> int | None:
        """See `Checkpoints`."""
        return agreed(super().latest)

    def save(self, step: int, state: Any) -> None:
        """See `Checkpoints`; returns when the state is gathered."""
        gathered = jax.tree.map(on_host, state)
        if first():
            super().save(step, gathered)

    def restore(self, step: int, like: Any) -> Any:
        """See `Checkpoints`."""

        def check() -> None:
            self._verify(step)
            self._refuse_others(step)

        agreed(check)
        saved = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        if first():
            saved = self._restored(step, state=ocp.args.StandardRestore(saved)).state
        return jax.tree.map(_placed, saved, like)

    def wait(self) -> None:
        """See `Checkpoints`."""
        if first():
            super().wait()

    def close(self) -> None:
        """See `Checkpoints`."""
        if first():
            super().close()

    def _options(self, keep: int) -> ocp.CheckpointManagerOptions:
        alone = ocp.options.MultiprocessingOptions(
            active_processes={0}, barrier_sync_key_prefix=self._folder.name
        )
        return dataclasses.replace(
            super()._options(keep), create=False, multiprocessing_options=alone
        )


def _placed(saved: np.ndarray, like: jax.Array) -> jax.Array:
    """Host 0's array, placed as `like`."""
    value = from_first(saved)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])


def _damaged(path: Path, folder: Path) -> str:
    return (
        f"{path} is missing or corrupt: its checksum is another. Restore it, or delete {folder} "
        "and the fit starts again"
    )


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
