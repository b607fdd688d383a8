"""How the hosts of one run see each other's files, where each has a folder of its own.

What a host changed goes as pieces into the bucket that it saves to, and their names go through the
service where the hosts meet. A bucket keeps these pieces, though no saved state has them, until all
hosts have met again. Host 0 sends to all, the others send to host 0: its folder is the run's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from selfevo_jax.parallel.distributed import first
from selfevo_jax.remote.bucket import Bucket, inside
from selfevo_jax.remote.listing import listing, seen

if TYPE_CHECKING:
    from selfevo_jax.remote.mirror import Mirror

T = TypeVar("T")
AGAIN_SECONDS = 5.0


def is_host_0s(name: str) -> bool:
    """Whether host 0 alone reads and writes a file: STAGE/checkpoints/... of a training."""
    return PurePosixPath(name).parts[2:3] in (("checkpoints",), ("best",))


class Exchange:
    """`parallel.distributed.Carrier` through `bucket`, for the folder of a mirror.

    While the bucket is away it waits and says so. Raises UserError where pieces are damaged.
    """

    def __init__(self, bucket: Bucket, mirror: Mirror, say: Callable[[str], None]) -> None:
        self._mirror, self._say = mirror, say
        self._buckets = [bucket.host(number) for number in range(jax.process_count())]
        known = listing(mirror.local) if first() else {}  # all hosts begin with what host 0 has
        self._told = {name: state for name, state in known.items() if not is_host_0s(name)}
        self._last: set[str] = set()

    def sent(self) -> dict[str, Any]:
        """See `Carrier`."""
        with self._mirror.lock:
            moment = self._insisted(lambda: self._mirror.moment(is_host_0s))
            files = {name: state for name, (state, _) in moment.items()}
            changed = {n: moment[n][1] for n, state in files.items() if self._told.get(n) != state}
            gone = sorted(self._told.keys() - files.keys())
            self._told = files
            self._last = {piece for pieces in changed.values() for piece in pieces}
            self._mirror.bucket.held |= self._last
        return {"changed": changed, "gone": gone}

    def take(self, host: int, changes: Any) -> None:
        """See `Carrier`."""
        local = self._mirror.local
        changed = {name: tuple(pieces) for name, pieces in changes["changed"].items()}
        with self._mirror.lock:
            for name in changes["gone"]:
                (local / inside(name)).unlink(missing_ok=True)
            self._insisted(lambda: self._buckets[host].bring(changed, local))
            for name in [*changes["gone"], *changed]:
                self._told.pop(name, None)
            # Host 0 saves what is the run's; the others save what they wrote themselves.
            known = self._told if first() else self._mirror.others
            known |= {name: seen(local / name) for name in changed}

    def met(self) -> None:
        """See `Carrier`."""
        self._mirror.bucket.held = set() if first() else self._last

    def _insisted(self, do: Callable[[], T]) -> T:
        while True:
            try:
                return do()
            except OSError as error:
                self._say(f"the hosts wait to see each other's files, trying again: {error}")
                time.sleep(AGAIN_SECONDS)
