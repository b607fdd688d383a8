"""Checkpoints of a fit: what is trained, the optimiser, and where in the data it stands.

Saved in the background, the newest few kept. A checkpoint counts only once it is complete (it is
renamed into place), so killing the process at any moment leaves the one before. The library behind
this (orbax) is named in this file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from selfevo_jax.errors import UserError


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
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({"settings": self._settings})
        )
        self._manager.save(step, args=items)

    def restore(self, step: int, like: Any) -> Any:
        """The state saved after `step` steps, placed and typed as the arrays of `like`.

        Raises `UserError` when it was made with other settings.
        """
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

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self.wait()
        self._manager.close()

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


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
