"""Answers on disk, by everything that was asked: SQLite with JSON in it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from selfevo_jax.sample.http.database import Database

VERSION = 1  # raised when the meaning of a stored answer changes

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
        """Opens or creates `path`. Raises UserError if it cannot."""
        self.database = Database(path)
        self.database.run(
            "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)"
        )

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored answer, or None."""
        rows = self.database.run("SELECT answer FROM answers WHERE key = ?", key)
        if not rows:
            return None
        digest, _, text = str(rows[0][0]).partition(" ")
        if digest != _digest(key, text):
            place = self.database.path
            _log.warning("the cache %s: an answer is damaged and is asked for again", place)
            return None
        return json.loads(text)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Stores an answer; it is on disk when this returns."""
        text = json.dumps(answer, separators=(",", ":"))
        kept = f"{_digest(key, text)} {text}"
        self.database.run("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, kept)

    def close(self) -> None:
        """Closes the file."""
        self.database.close()


def _digest(key: str, text: str) -> str:
    return hashlib.sha256((key + text).encode(errors="surrogatepass")).hexdigest()
