"""One SQLite file, for the threads of a process and for several processes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from selfevo_jax.errors import UserError

BUSY_SECONDS = 30.0


class Database:
    """Statements on a file, one at a time; whatever goes wrong is a UserError that names it."""

    def __init__(self, path: Path) -> None:
        """Opens or creates `path` (mode 600: it holds prompts). Raises UserError if it cannot."""
        self.path, self._lock = path, threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the cache {path} cannot be opened: {error}") from error
        self.run("PRAGMA journal_mode=WAL")

    def run(self, statement: str, *values: str | int) -> list[tuple]:
        """The rows that a statement gives; what it writes is on disk when this returns."""
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise UserError(
                f"the cache {self.path} cannot be used ({error}); move it away to start a new one"
            ) from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other thread or process writes between the statements inside: all of them, or none.

        A killed process loses none of it; a power cut may lose what no later `run` has written.
        """
        with self._lock:
            self.run("PRAGMA synchronous=NORMAL")  # a disk's wait, twice a call, would be felt
            try:
                self.run("BEGIN IMMEDIATE")
                yield
                self.run("COMMIT")
            except BaseException:
                with contextlib.suppress(UserError):
                    self.run("ROLLBACK")
                raise
            finally:
                self.run("PRAGMA synchronous=FULL")

    def close(self) -> None:
        """Closes the file."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._connection.close()
