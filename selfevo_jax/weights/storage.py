"""The user's cache folder, content hashes that are cheap to ask for twice, atomic writes.

A file or folder written here appears whole or not at all: the bytes go to a temporary name
beside the target, reach the disk (fsync), and only then take the target's name.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfevo_jax.errors import UserError


def cache_folder() -> Path:
    """Downloads and hashes: $SELFEVO_CACHE, $XDG_CACHE_HOME/selfevo or ~/.cache/selfevo."""
    if own := os.environ.get("SELFEVO_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "selfevo"
    return Path.home() / ".cache" / "selfevo"


@contextmanager
def explained_write(target: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `target` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; free space or choose another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Force the bytes of `path` to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path; what is written there becomes `target` when the block succeeds."""
    with explained_write(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync_file(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the place of `target` when the block succeeds.

    An older `target` is moved aside first and deleted last, so files of two writes never mix.
    One writer at a time: what a killed one left behind (`.NAME.tmp`) is removed by the next.
    """
    with explained_write(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = target.parent / f".{target.name}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        try:
            fresh = work / "new"
            fresh.mkdir(parents=True)
            yield fresh
            for path in fresh.iterdir():
                sync_file(path)
            _sync_folder(fresh)
            if target.exists():
                os.rename(target, work / "old")
            os.rename(fresh, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        _sync_folder(target.parent)


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Within the block no other process of this machine is in one for `target`; others wait."""
    with explained_write(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.parent / f".{target.name}.lock", "w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """`sha256_of_file`, remembered in the cache folder while size and change time stay equal."""
    path = path.resolve()
    stat = path.stat()
    state = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    key = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    note = cache_folder() / "hashes" / f"{key}.json"
    with suppress(OSError, ValueError):  # absent or damaged: hash again
        kept = json.loads(note.read_text())
        digest = kept.pop("sha256")
        if kept == state:
            return digest
    digest = sha256_of_file(path)
    with suppress(UserError):  # a cache that cannot be written only costs time
        with atomic_file(note) as temporary:
            temporary.write_text(json.dumps({**state, "sha256": digest}))
    return digest


def files_sha256(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 in hex over (path in the folder, SHA-256) of files of a folder."""
    named = ((file.relative_to(folder).as_posix(), file) for file in files)
    lines = [f"{name} {known_sha256(file)}\n" for name, file in named]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
