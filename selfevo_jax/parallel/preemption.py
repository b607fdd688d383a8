"""Being told to go: SIGTERM, as sent before a spot machine is taken away or a time limit ends.

The notice is heard at once, as an exception in the main thread, unless that runs in a `waiting`
block: there the work looks for itself (`noticed`), saves, and leaves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_notice, _leaving = threading.Event(), threading.Event()
_waiting = 0


class Preempted(BaseException):
    """This run was told to stop. `together`: all hosts agreed to, and have saved."""

    def __init__(self, *, together: bool = False) -> None:
        super().__init__("told to stop")
        self.together = together


def noticed() -> bool:
    """Whether this process was told to go."""
    return _notice.is_set()


def notice() -> None:
    """Takes the notice; raises `Preempted` unless the work that runs looks for it itself."""
    _notice.set()
    if not _waiting and not _leaving.is_set():
        raise Preempted


def heard() -> None:
    """The work is ending: no notice is raised into what it still has to do."""
    _leaving.set()


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """A notice taken within the block is over with it."""
    try:
        yield
    finally:
        _notice.clear()
        _leaving.clear()


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Within the block a notice waits; `Preempted` is raised at its end if nobody acted on it."""
    global _waiting
    _waiting += 1
    try:
        yield
    finally:
        _waiting -= 1
    if noticed() and not _waiting:
        raise Preempted
