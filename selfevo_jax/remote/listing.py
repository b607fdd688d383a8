"""What a folder holds while others write in it, and whether it stood still between two looks.

A run's folder may be left at any moment (it is killed there and goes on), so a copy is good when
it shows one moment. Files here either take their name when they are whole and are replaced, never
changed, or they are journals, which grow at their end. If three listings show the same files,
journals grown or not, nothing but growing happened between the first and the last, and the lengths
that the second saw belong to moments of that time.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# Journals of ours, of SQLite, of worker processes, of W&B and of TensorBoard.
JOURNALS = (".jsonl", "-wal", ".log", ".wandb")


class Seen(NamedTuple):
    """A file as a listing saw it."""

    inode: int
    bytes: int
    changed_ns: int


def listing(folder: Path) -> dict[str, Seen]:
    """Every file below `folder` by its path there, but for locks and what is not whole yet."""
    found: dict[str, Seen] = {}
    _look(folder, "", found)
    return found


def still(before: Mapping[str, Seen], after: Mapping[str, Seen]) -> bool:
    """Whether nothing happened between two listings, but for journals that have grown."""
    return before.keys() == after.keys() and all(
        after[name] == seen or (_is_journal(name) and _grown(seen, after[name]))
        for name, seen in before.items()
    )


def seen(path: Path | str) -> Seen:
    """A file as it is now."""
    state = os.stat(path)  # not a directory entry's own, which may be old
    return Seen(state.st_ino, state.st_size, state.st_mtime_ns)


def _is_journal(name: str) -> bool:
    return name.endswith(JOURNALS) or ".tfevents." in name


def _grown(before: Seen, after: Seen) -> bool:
    return after.inode == before.inode and after.bytes > before.bytes


def _look(folder: Path, prefix: str, found: dict[str, Seen]) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _passing(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    _look(folder / entry.name, f"{name}/", found)
                elif entry.is_file(follow_symlinks=False):
                    found[name] = seen(entry.path)
    except FileNotFoundError:  # renamed or removed meanwhile: the second look sees that
        return


def _passing(name: str) -> bool:
    """Locks, files and folders that take their name when they are whole, SQLite's shared memory."""
    return name.startswith(".") or name.endswith((".tmp", "-shm")) or "checkpoint-tmp" in name
