"""A run whose workdir is in a bucket: it works in a folder of this machine, and what stands there
is saved in the bucket every half minute and at the end. Of several hosts each has such a folder,
and saves what it wrote itself; host 0 saves what is the run's."""

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

import jax

from selfevo_jax.errors import UserError
from selfevo_jax.parallel import preemption
from selfevo_jax.parallel.distributed import agreed, barrier, carried_by, first, own_name
from selfevo_jax.remote.bucket import Bucket, Gone, Lost, Pieces, State
from selfevo_jax.remote.exchange import Exchange, is_host_0s
from selfevo_jax.remote.listing import Seen, listing, still
from selfevo_jax.weights.storage import atomic_file, cache_folder

SAVE_SECONDS = 30.0
_LOOKS = 100
MARK = ".bucket.json"  # in the local folder: the owner whose work it holds
COPY = ".copy_of"  # in a copy: of which URL


Moment = dict[str, tuple[Seen, Pieces]]


def is_url(workdir: str) -> bool:
    """Whether a workdir is a place that is not in the file system."""
    return "://" in workdir


@contextlib.contextmanager
def workplace(workdir: str, say: Callable[[str], None]) -> Iterator[Path]:
    """The folder to work in: `workdir` itself, or for a URL a local one that is kept saved there.

    What a person should know of it is told to `say`. Of several hosts all must come here.

    Raises UserError where the bucket cannot be reached, another run holds it, or, at the end, the
    last state could not be saved (it is still in the local folder then).
    """
    if not is_url(workdir):
        yield Path(workdir)
        return
    bucket, local = Bucket(workdir), _local(workdir)
    with _reached(workdir):
        mirror = _mirror(bucket, local, say)
    say(f"working in {local}; every {SAVE_SECONDS:.0f} s it is saved in {workdir}")
    with _Saving(mirror, say), _exchanged(bucket, mirror, say):
        yield local
        barrier()  # host 0 saves the last that the others wrote


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
    return cache_folder() / "workdirs" / own_name(f"{Path(url).name}-{digest}")


def _mirror(bucket: Bucket, local: Path, say: Callable[[str], None]) -> "Mirror":
    """What saves this host's folder, which holds what the run has."""
    if first():
        mirror = Mirror(bucket, local, _open(bucket, local, say))
        if jax.process_count() > 1:
            mirror.save()  # for the others, who fetch it
    owner = agreed(lambda: mirror.owner)
    if not first():
        mirror = _joined(bucket, local, owner)
    barrier()  # until then nothing is saved anew, so that all its pieces stay
    return mirror


def _joined(bucket: Bucket, local: Path, owner: int) -> "Mirror":
    """`_mirror` of a host other than 0, where that has claimed the bucket as `owner`."""
    state = bucket.newest()
    assert state is not None
    own = Mirror(bucket.host(jax.process_index()), local, owner)
    local.mkdir(parents=True, exist_ok=True)
    files = {name: pieces for name, pieces in state.files.items() if not is_host_0s(name)}
    bucket.fetch(state._replace(files=files), local)
    own.others = listing(local)
    own.bucket.follow(owner)
    return own


@contextlib.contextmanager
def _exchanged(bucket: Bucket, mirror: "Mirror", say: Callable[[str], None]) -> Iterator[None]:
    """Within the block several hosts see each other's files."""
    if jax.process_count() == 1:
        yield
        return
    with carried_by(Exchange(bucket, mirror, say)):
        yield


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
    for host in bucket.hosts():
        state = host.newest()
        if base and state and state.owner == base.owner:  # of the same group
            host.bring(state.files, local)
    with atomic_file(mark) as unfinished:
        unfinished.write_text(json.dumps(own))
    return own


class Mirror:
    """Saves a local folder in a bucket that `owner` holds.

    `others` are files as other hosts sent them, who save them. The lock is held while the folder is
    saved, and while it takes what others send.
    """

    def __init__(self, bucket: Bucket, local: Path, owner: int) -> None:
        self.bucket, self.local, self.owner = bucket, local, owner
        self.others: dict[str, Seen] = {}
        self.lock = threading.Lock()
        self._known: Moment = {}

    def save(self, *, left: bool = False) -> None:
        """Saves the folder as it is at one moment; `left`: nothing will be saved after this.

        Raises OSError where the bucket does not answer, `Lost` where another run has it.
        """
        with self.lock:
            self._known = self.moment()
            files = {name: pieces for name, (_, pieces) in self._known.items()}
            self.bucket.save(State(self.owner, files, left))

    def moment(self, passed: Callable[[str], bool] = lambda name: False) -> "Moment":
        """The files of one moment, and the pieces that they are made of, which are in the bucket.

        What is `passed` over by its name is not among them. Raises OSError as `save`.
        """
        before = self._files(passed)
        for _ in range(_LOOKS):
            now = self._files(passed)
            if still(before, now) and (kept := self._put(now)) is not None:
                after = self._files(passed)
                if still(now, after):
                    return kept
                now = after
            before = now
        raise OSError(f"{self.local} did not stand still for a moment")

    def _files(self, passed: Callable[[str], bool]) -> dict[str, Seen]:
        found = listing(self.local).items()
        return {n: seen for n, seen in found if self.others.get(n) != seen and not passed(n)}

    def _put(self, files: dict[str, Seen]) -> "Moment | None":
        """The pieces of all files, put into the bucket; None if a file went away meanwhile."""
        known: Moment = {}
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
        return known


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
