"""When the next call may be sent: calls a minute, and what a server asked us to wait."""

from __future__ import annotations

import threading
import time


class Pace:
    """Shared by all threads of a client. `per_minute` 0 means no limit."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0  # on the monotonic clock
        self._held_until = 0.0

    def hold(self, seconds: float) -> None:
        """Nobody sends for this long: the server said so to one of us."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def wait(self, stop: threading.Event) -> None:
        """Returns when this thread may send one call, or at once when `stop` is set."""
        while (delay := self._take()) > 0 and not stop.wait(delay):
            pass

    def _take(self) -> float:
        """Takes a place if one is free now; else the seconds until it is worth asking again."""
        with self._lock:
            now = time.monotonic()
            due = max(self._next, self._held_until)
            if due > now:
                return due - now
            self._next = max(self._next, now - self._interval) + self._interval
            return 0.0
