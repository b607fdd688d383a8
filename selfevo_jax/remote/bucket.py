"""Saved states of one folder in a bucket, of which readers see the last whole one.

    owners/000007.json   the seventh run that took the folder over: host, process, time
    saved/000007.json    the last state that it saved: files, and the pieces they are made of
    pieces/SHA256        at most `PIECE_BYTES` of a file
    hosts/1/...          the same of host 1 of several: of its folder, what it wrote itself

An owner's file is made only where there is none, which a bucket decides for all that try. A state
is one object, written after its pieces: a reader sees all of it or the one before. Who finds a
newer owner has lost the folder, and what it wrote stands under its own number, where nobody looks.
"""

import copy
import datetime
import functools
import hashlib
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from selfevo_jax.errors import UserError
from selfevo_jax.weights.storage import atomic_file

PIECE_BYTES = 16 << 20
SILENT_SECONDS = 120.0  # an owner that saved nothing for so long is taken to be dead
_WORKERS = 8

Pieces = tuple[str, ...]


class Lost(UserError):
    """Another run has taken the folder over."""


class Gone(Exception):
    """A file went away, or lost its end, before it was read."""


class State(NamedTuple):
    """A folder as it was: for each file the SHA-256 of its pieces. `owner` saved it, and `left`
    says that it saves nothing more."""

    owner: int
    files: Mapping[str, Pieces]
    left: bool

    @property
    def pieces(self) -> set[str]:
        """All that its files are made of."""
        return {piece for pieces in self.files.values() for piece in pieces}


class Bucket:
    """The states below a URL such as `gs://bucket/runs/a`, opened by fsspec.

    Raises UserError where the URL cannot be opened. What fails later raises `OSError`.
    """

    def __init__(self, url: str) -> None:
        # It prints the traceback of every failure, which is told in one line by who asked.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        self.url = url.rstrip("/")
        self._forget()
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, skip_instance_cache=True
            )
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{url} cannot be opened ({error}); for gs:// give: pip install 'selfevo_jax[gcs]'"
            ) from error

    def host(self, number: int) -> "Bucket":
        """What host `number` keeps for itself; host 0 keeps what is the run's."""
        if not number:
            return self
        other = copy.copy(self)  # with the same connection
        other.url, other._root = f"{self.url}/hosts/{number}", self._path(f"hosts/{number}")
        other._forget()
        return other

    def _forget(self) -> None:
        self._there: set[str] = set()  # pieces, since this run owns the folder
        self.held: set[str] = set()  # pieces that are kept though no state has them

    def hosts(self) -> list["Bucket"]:
        """`host` of all hosts but host 0 that ever kept something here."""
        numbers = [path.rstrip("/").rpartition("/")[2] for path in self._paths("hosts")]
        return [self.host(int(number)) for number in numbers if number.isdigit()]

    def newest(self) -> State | None:
        """The last state that the latest owner saved, None where nothing was ever saved."""
        number = self._last("saved")
        return self._state(number) if number else None

    def owner(self) -> int:
        """The number of the latest owner, 0 if there was none."""
        return self._last("owners")

    def claim(self, say: Callable[[str], None]) -> tuple[int, State | None]:
        """Takes the folder over: the new owner's number, and the state that it begins with.

        Waits for an owner of which it is not known whether it lives, and says so. Raises UserError
        if it does.
        """
        while True:
            before = self.owner()
            if before:
                self._wait_for(before, say)
            own = before + 1
            if self._named(own):
                break
        base = self.newest()
        self._begin(State(own, base.files if base else {}, left=False))
        return own, base

    def follow(self, own: int) -> None:
        """Takes over what this host keeps for itself, once host 0 has claimed the run as `own`."""
        self._named(own)
        self._begin(State(own, {}, left=False))

    def _named(self, own: int) -> bool:
        return self._made("owners", own, {**here(), "since": _now().ctime()})

    def _begin(self, state: State) -> None:
        self.save(state)
        # Among them are pieces that a killed run put and never saved a state of.
        self._there = {path.rpartition("/")[2] for path in self._paths("pieces")}

    def save(self, state: State) -> None:
        """Makes `state` what readers see, and removes the pieces that it does not have, but for
        those that are held.

        Its pieces must be there. Raises `Lost` where there is a newer owner.
        """
        self._refuse_other(state.owner)
        self._write("saved", state.owner, _described(state.files, left=state.left))
        if gone := self._there - state.pieces - self.held:
            self._refuse_other(state.owner)
            with _told(self.url), ThreadPoolExecutor(_WORKERS) as pool:
                list(pool.map(self._fs.rm_file, [self._path(f"pieces/{piece}") for piece in gone]))
            self._there -= gone

    def put(self, path: Path, size: int) -> Pieces:
        """Writes what is not there yet of a file's first `size` bytes; its pieces.

        Raises `Gone` where it does not have so many.
        """
        pieces: list[str] = []
        content = _contents(path, size)
        with ThreadPoolExecutor(_WORKERS) as pool:
            while few := list(itertools.islice(content, _WORKERS)):  # `map` would read all at once
                pieces += pool.map(self._put, few)
        return tuple(pieces)

    def _put(self, content: bytes) -> str:
        piece = hashlib.sha256(content).hexdigest()
        if piece not in self._there:
            with _told(self.url):
                self._fs.pipe_file(self._path(f"pieces/{piece}"), content)
            self._there.add(piece)
        return piece

    def fetch(self, state: State, folder: Path) -> None:
        """Makes `folder` hold the files of `state` and no others, but for hidden ones.

        Raises UserError for a piece that is missing or not what it was.
        """
        for path in sorted(folder.rglob("*")):
            known = path.name.startswith(".") or str(path.relative_to(folder)) in state.files
            if path.is_file() and not known:
                path.unlink()
        self.bring(state.files, folder)

    def bring(self, files: Mapping[str, Pieces], folder: Path) -> None:
        """Makes `folder` hold these files. Raises UserError as `fetch`."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            fetched = functools.partial(self._fetch, folder)
            list(pool.map(fetched, files.items()))

    def _fetch(self, folder: Path, named: tuple[str, Pieces]) -> None:
        name, pieces = named
        path = folder / inside(name)
        if path.is_file() and _pieces(path) == pieces:
            return
        with atomic_file(path) as unfinished, open(unfinished, "wb") as file:
            for piece in pieces:
                file.write(self._piece(name, piece))

    def _piece(self, name: str, piece: str) -> bytes:
        try:
            with _told(self.url):
                content = self._fs.cat_file(self._path(f"pieces/{piece}"))
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != piece:
            raise UserError(
                f"{self.url}: {name} is missing or corrupt (pieces/{piece} is not what was saved); "
                "restore that object, or give a new --workdir"
            )
        return content

    def _wait_for(self, owner: int, say: Callable[[str], None]) -> None:
        """Returns when `owner` is known to be dead or to have left."""
        about, first = self._read("owners", owner), None
        while True:
            state = self._state(owner) if self._last("saved") >= owner else None
            if (state and state.left) or _ended(about):
                return
            heard = self._heard(owner, saved=state is not None)
            silent = (_now() - heard).total_seconds()
            if silent > SILENT_SECONDS:
                return
            who = f"another run (process {about['process']} on {about['host']})"
            if first is None:
                say(
                    f"{self.url} was in use by {who} {silent:.0f} s ago: waiting until that has "
                    f"been silent for {SILENT_SECONDS:.0f} s"
                )
            elif heard != first:
                raise UserError(
                    f"{self.url} is in use by {who}; wait for it, stop it, or give this run "
                    "another --workdir"
                )
            first = heard
            time.sleep(SILENT_SECONDS / 20)

    def _heard(self, owner: int, *, saved: bool) -> datetime.datetime:
        with _told(self.url):
            return self._fs.modified(self._path(_name("saved" if saved else "owners", owner)))

    def _refuse_other(self, own: int) -> None:
        if (newest := self.owner()) != own:
            about = self._read("owners", newest)
            raise Lost(
                f"{self.url} was taken over by process {about['process']} on {about['host']}: this "
                "run saves nothing more there"
            )

    def _last(self, kind: str) -> int:
        numbers = [path.rpartition("/")[2].removesuffix(".json") for path in self._paths(kind)]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _paths(self, kind: str) -> list[str]:
        with _told(self.url):
            try:
                return self._fs.ls(self._path(kind), detail=False, refresh=True)
            except FileNotFoundError:
                return []

    def _state(self, number: int) -> State:
        kept = self._read("saved", number)
        files = {inside(name): tuple(pieces) for name, pieces in kept["files"].items()}
        return State(number, files, kept["left"])

    def _read(self, kind: str, number: int) -> dict[str, Any]:
        with _told(self.url):
            return json.loads(self._fs.cat_file(self._path(_name(kind, number))))

    def _made(self, kind: str, number: int, value: Any) -> bool:
        """Whether the object was not there and is now."""
        try:
            self._write(kind, number, value, mode="create")
        except FileExistsError:
            return False
        return True

    def _write(self, kind: str, number: int, value: Any, mode: str = "overwrite") -> None:
        content = json.dumps(value, indent=1).encode()
        with _told(self.url):
            self._fs.pipe_file(self._path(_name(kind, number)), content, mode=mode)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _pieces(path: Path) -> Pieces:
    return tuple(hashlib.sha256(c).hexdigest() for c in _contents(path, path.stat().st_size))


def _contents(path: Path, size: int) -> Iterator[bytes]:
    """The pieces of a file's first `size` bytes. Raises `Gone`."""
    try:
        with open(path, "rb") as file:
            for start in range(0, size, PIECE_BYTES):
                content = file.read(min(PIECE_BYTES, size - start))
                if len(content) < min(PIECE_BYTES, size - start):
                    raise Gone(path)
                yield content
    except FileNotFoundError as error:
        raise Gone(path) from error


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turns what the libraries behind fsspec raise into an OSError that names the URL."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except _failures() as error:
        raise OSError(f"{url}: {type(error).__name__}: {error}".splitlines()[0]) from error


@functools.cache
def _failures() -> tuple[type[Exception], ...]:
    """What a library may raise besides OSError when the network or the bucket fails."""
    kinds: list[type[Exception]] = [OSError, ValueError]
    try:
        import aiohttp
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        return tuple(kinds)
    return (*kinds, aiohttp.ClientError, HttpError, GoogleAuthError)


def _described(files: Mapping[str, Pieces], *, left: bool) -> dict[str, Any]:
    return {"left": left, "files": {name: list(files[name]) for name in sorted(files)}}


def _name(kind: str, number: int) -> str:
    return f"{kind}/{number:06d}.json"


def _ended(about: Mapping[str, Any]) -> bool:
    """Whether an owner ran on this machine and is gone."""
    if any(about.get(name) != value for name, value in here().items() if name != "process"):
        return False
    try:
        os.kill(about["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def here() -> dict[str, Any]:
    """This process, and where its number means something: this start of this machine's kernel, and
    in it these processes (a container has its own)."""
    found = {"host": socket.gethostname(), "process": os.getpid()}
    with suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["processes"] = os.readlink("/proc/self/ns/pid")
    return found


def inside(name: str) -> str:
    """`name` if it stays inside the folder it is joined to; a bucket is not to be trusted."""
    if name.startswith("/") or ".." in Path(name).parts or not Path(name).parts:
        raise UserError(f"a saved state names the file {name!r}, which lies outside the workdir")
    return name


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
