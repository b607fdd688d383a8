"""A run whose workdir is in a bucket: it works in a folder of this machine, and what stands there
is saved in the bucket every half minute and at the end."""

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.parallel import preemption
from selfevo_jax.remote.bucket import Bucket, Gone, Lost, Pieces, State
from selfevo_jax.remote.listing import Seen, listing, still
from selfevo_jax.weights.storage import atomic_file, cache_folder

SAVE_SECONDS = 30.0
_LOOKS = 100
MARK = ".bucket.json"  # in the local folder: the owner whose work it holds
COPY = ".copy_of"  # in a copy: of which URL


def is_url(workdir: str) -> bool:
    """Whether a workdir is a place that is not in the file system."""
    return "://" in workdir


@contextlib.contextmanager
def workplace(workdir: str, say: Callable[[str], None]) -> Iterator[Path]:
    """The folder to work in: `workdir` itself, or for a URL a local one that is kept saved there.

    What a person should know of it is told to `say`.

    Raises UserError where the bucket cannot be reached, another run holds it, or, at the end, the
    last state could not be saved (it is still in the local folder then).
    """
    if not is_url(workdir):
        yield Path(workdir)
        return
    bucket, local = Bucket(workdir), _local(workdir)
    with _reached(workdir):
        owner = _open(bucket, local, say)
    say(f"working in {local}; every {SAVE_SECONDS:.0f} s it is saved in {workdir}")
    with _Saving(Mirror(bucket, local, owner), say):
        yield local


@contextlib.contextmanager
def copy_of(workdir: str, say: Callable[[str], None]) -> Iterator[Path]:
    """The folder to look at: `workdir` itself, or for a URL a copy that goes at the end."""
    if not is_url(workdir):
        yield Path(workdir)
        return
    with tempfile.TemporaryDirectory() as folder:
        if fetch(workdir, Path(folder)):
            say(f"looking at a copy of {workdir}")
        yield Path(folder)


def fetch(url: str, folder: Path) -> bool:
    """Makes `folder` a copy of a run's last saved state, also while it runs; whether there is one.

    Raises UserError where the bucket cannot be reached, a file there is damaged, or `folder` holds
    anything but an older copy: what is not in the state is removed.
    """
    bucket, mark = Bucket(url), folder / COPY
    if (
        folder.exists()
        and any(folder.iterdir())
        and not (mark.is_file() and mark.read_text() == bucket.url)
    ):
        raise UserError(f"{folder} is no copy of {url}: give a new folder")
    with _reached(url):
        state = bucket.newest()
        while state:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(bucket.url)
            try:
                bucket.fetch(state, folder)
                return True
            except UserError:  # it may have been saved anew, and its old pieces are gone
                before, state = state, bucket.newest()
                if state == before:
                    raise
    return False


@contextlib.contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{url} cannot be used ({error}): is the name right, is this machine logged in (gcloud "
            "auth application-default login), and may it read and write there?"
        ) from error


def _local(url: str) -> Path:
    digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:8]
    return cache_folder() / "workdirs" / f"{Path(url).name}-{digest}"


def _open(bucket: Bucket, local: Path, say: Callable[[str], None]) -> int:
    """Claims the bucket and makes `local` what it holds; the new owner's number.

    Where the last owner worked in `local`, that is as far or farther.
    """
    own, base = bucket.claim(say)
    mark = local / MARK
    if not mark.is_file() or json.loads(mark.read_bytes()) != own - 1:
        mark.unlink(missing_ok=True)
        local.mkdir(parents=True, exist_ok=True)
        if base:
            say(f"{bucket.url} holds {len(base.files)} files: fetching them")
        bucket.fetch(base or State(own, {}, left=False), local)
    with atomic_file(mark) as unfinished:
        unfinished.write_text(json.dumps(own))
    return own


class Mirror:
    """Saves a local folder in a bucket that `owner` holds."""

    def __init__(self, bucket: Bucket, local: Path, owner: int) -> None:
        self.bucket, self.local, self._owner = bucket, local, owner
        self._known: dict[str, tuple[Seen, Pieces]] = {}

    def save(self, *, left: bool = False) -> None:
        """Saves the folder as it is at one moment; `left`: nothing will be saved after this.

        Raises OSError where the bucket does not answer, `Lost` where another run has it.
        """
        before = listing(self.local)
        for _ in range(_LOOKS):
            now = listing(self.local)
            if still(before, now) and (kept := self._put(now)) is not None:
                after = listing(self.local)
                if still(now, after):
                    self.bucket.save(State(self._owner, kept, left))
                    return
                now = after
            before = now
        raise OSError(f"{self.local} did not stand still for a moment")

    def _put(self, files: dict[str, Seen]) -> dict[str, Pieces] | None:
        """The pieces of all files, put into the bucket; None if a file went away meanwhile."""
        known: dict[str, tuple[Seen, Pieces]] = {}
        try:
            for name, seen in files.items():
                before = self._known.get(name)
                if before is None or before[0] != seen:
                    before = seen, self.bucket.put(self.local / name, seen.bytes)
                known[name] = before
        except Gone:
            return None
        finally:
            self._known |= known
        self._known = known
        return {name: pieces for name, (_, pieces) in known.items()}


class _Saving:
    """Within the block the mirror is saved again and again, by a thread of its own, and at last
    when it is left, however that is."""

    def __init__(self, mirror: Mirror, say: Callable[[str], None]) -> None:
        self._mirror, self._say, self._left = mirror, say, threading.Event()
        self._failure: OSError | Lost | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        preemption.heard()
        self._left.set()
        while self._thread.is_alive():
            with contextlib.suppress(KeyboardInterrupt):  # comes again every second
                self._thread.join()
        if isinstance(self._failure, Lost):
            raise self._failure
        if self._failure:
            raise UserError(
                f"the end of this run could not be saved ({self._failure}). All of it is in "
                f"{self._mirror.local}: start the same command on this machine again"
            ) from self._failure
        assert self._ended, "the thread that saves has died of the error above"

    def _work(self) -> None:
        saved, last = time.monotonic(), False
        while not last:
            last = self._left.wait(SAVE_SECONDS)
            try:
                self._mirror.save(left=last)
                saved, self._failure, self._ended = time.monotonic(), None, last
            except Lost as lost:
                self._failure = lost
                if not last:
                    os.kill(os.getpid(), signal.SIGTERM)
                return
            except OSError as error:
                self._failure = error
                silent = time.monotonic() - saved
                self._say(f"nothing saved for {silent:.0f} s, trying again: {error}")
