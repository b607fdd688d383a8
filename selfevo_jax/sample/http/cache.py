"""Answers on disk, by everything that was asked: SQLite with JSON in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError

VERSION = 1  # raised when the meaning of a stored answer changes
BUSY_SECONDS = 30.0

_log = logging.getLogger(__name__)


def request_key(url: str, body: dict[str, Any]) -> str:
    """SHA-256 (hex) of the address and the whole body: model, messages, sampling, seed."""
    text = json.dumps([VERSION, url, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerCache:
    """A dict of JSON objects in one file; safe for threads and for several processes.

    Every answer lies beside a SHA-256 of itself and its key (damage can lead to another's answer):
    one that does not match is told of and asked for again.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates `path` (mode 600: it holds prompts). Raises UserError if it cannot."""
        self._path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the cache {path} cannot be opened: {error}") from error
        self._run("PRAGMA journal_mode=WAL")
        self._run("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored answer, or None."""
        rows = self._run("SELECT answer FROM answers WHERE key = ?", key)
        if not rows:
            return None
        digest, _, text = str(rows[0][0]).partition(" ")
        if digest != _digest(key, text):
            _log.warning("the cache %s: an answer is damaged and is asked for again", self._path)
            return None
        return json.loads(text)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Stores an answer; it is on disk when this returns."""
        text = json.dumps(answer, separators=(",", ":"))
        kept = f"{_digest(key, text)} {text}"
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, kept)

    def close(self) -> None:
        """Closes the file."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _run(self, statement: str, *values: str) -> list[tuple]:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"the cache {self._path} cannot be used ({error}); move it away to start a new one"
            ) from error


def _digest(key: str, text: str) -> str:
    return hashlib.sha256((key + text).encode(errors="surrogatepass")).hexdigest()
