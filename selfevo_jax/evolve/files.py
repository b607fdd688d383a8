"""Files that are whole or absent: atomic writes, checksums, the workdir's lock, a full disk."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError

LOCK = ".lock"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: Path, content: bytes) -> None:
    """The file appears whole under its name or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    with open(part, "wb") as stream:
        stream.write(content)
        sync(stream.fileno())
    commit(part, path)


def commit(part: Path, path: Path) -> None:
    """Renames a finished, synced temporary file into place and makes the rename durable."""
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sync(descriptor: int) -> None:
    """Waits until the file's bytes are on the disk."""
    os.fsync(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with sorted keys, written atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """The JSON value of a file that we wrote; UserError when it is no longer JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def disk_full_is_a_message(safe: str) -> Iterator[None]:
    """Turns 'no space left' into a UserError that says what is `safe`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        place = f" writing {error.filename}" if error.filename else ""
        raise UserError(
            f"no space left on the disk{place} ({error.strerror}). {safe} "
            "Free some space and run the same command again."
        ) from error


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the workdir for this process; a second run on it is a UserError.

    The lock belongs to the open file, so the kernel drops it when its process dies: a file left
    behind by a killed run locks nothing.
    """
    descriptor = _open_lock(workdir)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise UserError(
                f"{workdir} is in use by another run ({holder}); "
                "wait for it, stop it, or give this run another --workdir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open_lock(workdir: Path) -> int:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}); give another --workdir"
        ) from error
