"""Checkpoints of a fit: what is trained, the optimiser, and where in the data it stands.

Saved in the background, the newest few kept. A checkpoint counts only once it is complete (it is
renamed into place), so killing the process at any moment leaves the one before. Complete ones get
the checksums of their files (by host 0, when the next is saved or the fit ends), and are compared
with these before they are read; one that a kill left without them is read as it is. The library
behind this (orbax) is named in this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from selfevo_jax.errors import UserError
from selfevo_jax.parallel.distributed import agreed, first
from selfevo_jax.weights.storage import atomic_file, sha256_of_file

SUMS = "sums.json"


class Checkpoints:
    """The checkpoints in one folder. `settings` is what must be equal for a resume to be exact."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, keep: int = 2):
        self._folder, self._settings = Path(folder), dict(settings)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(), options=options, item_names=("state", "meta")
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
        meta = self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        ).meta
        self._refuse_others(meta["settings"])
        abstract = jax.tree.map(_abstract, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=items).state

    def wait(self) -> None:
        """Waits until what is being saved is complete."""
        self._manager.wait_until_finished()
        self._seal()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self.wait()
        self._manager.close()

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

    def _refuse_others(self, saved: Mapping[str, Any]) -> None:
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


def _damaged(path: Path, folder: Path) -> str:
    return (
        f"{path} is missing or corrupt: its checksum is another. Restore it, or delete {folder} "
        "and the fit starts again"
    )


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
