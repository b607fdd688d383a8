"""The journal of a stage: one line per finished input, appended as inputs finish, in any order.

A line is `{"n":<position>,"id":"<input id>","out":[<records>],"crc":"<crc32>"}`, written with one
`write`; the first line holds the stage's key. A line cut short by a kill or a power cut is dropped
when the journal is opened again, and its input is owed again. Memory is that of the inputs that
finished ahead of an earlier one, not of the file.

Where several hosts share a stage, each appends to a journal of its own; host 0 takes them into one.
"""

import contextlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import disk_full_is_a_message, sync
from selfevo_jax.records import canonical_json

SYNC_SECONDS = 1.0
_CRC = b',"crc":"%08x"}'
_CRC_LENGTH = len(_CRC % 0)


class Entry(NamedTuple):
    """One finished input: its place in the input order, its id, the records it gave."""

    position: int
    id: str
    records: list[dict[str, Any]]


class Done:
    """The positions that are finished, kept as a frontier and the few ahead of it."""

    def __init__(self) -> None:
        self.frontier = 0
        self.ahead: set[int] = set()

    def add(self, position: int) -> None:
        self.ahead.add(position)
        while self.frontier in self.ahead:
            self.ahead.remove(self.frontier)
            self.frontier += 1

    def __contains__(self, position: int) -> bool:
        return position < self.frontier or position in self.ahead

    def __len__(self) -> int:
        return self.frontier + len(self.ahead)


class Journal:
    """Appends to and reads back `path`. Opening drops a torn end and refuses damage before it."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key
        self.done = Done()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._synced = time.monotonic()
        end = self._scan()
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        if end == 0:
            self._write(canonical_json({"key": key}).encode())

    def _scan(self) -> int:
        """Marks what is done; returns the offset after the last whole line."""
        end = offset = 0
        torn: int | None = None
        with open(self.path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                offset += len(line)
                body = _body(line)
                if body is None:
                    torn = torn or number
                    continue
                if torn:
                    raise UserError(
                        f"{self.path}:{torn} is damaged (its checksum does not match); restore the "
                        "file, or delete it and the stage starts again"
                    )
                self._take(number, body)
                end = offset
        return end

    def _take(self, number: int, body: bytes) -> None:
        if number > 1:
            self.done.add(_position(body))
        elif json.loads(body)["key"] != self._key:
            raise AssertionError(f"{self.path} belongs to another key")

    def append(self, entry: Entry) -> None:
        """One line, in the file when this returns, on the disk within a second or so."""
        head = f'{{"n":{entry.position},"id":{json.dumps(entry.id)},"out":'
        self._write((head + compact_json(entry.records) + "}").encode())
        self.done.add(entry.position)
        now = time.monotonic()
        if now - self._synced > SYNC_SECONDS:
            self.sync()

    def _write(self, body: bytes) -> None:
        line = body[:-1] + _CRC % zlib.crc32(body[:-1]) + b"\n"
        safe = f"The {len(self.done)} inputs finished so far are safe in {self.path}."
        with disk_full_is_a_message(safe):
            while line:
                line = line[os.write(self._file, line) :]

    def absorb(self, others: Iterable[Path]) -> None:
        """Takes over what other hosts' journals have, and removes them.

        Those of another stage are only removed.
        """
        for other in others:
            if journal_key(other) == self._key:
                with contextlib.closing(Journal(other, self._key)) as found:
                    for entry in found.entries():
                        if entry.position not in self.done:
                            self.append(entry)
                self.sync()
            other.unlink()

    def entries(self) -> Iterator[Entry]:
        """All entries in the order of the file."""
        with open(self.path, "rb") as stream:
            stream.readline()
            for line in stream:
                yield self._entry(line)

    def sync(self) -> None:
        """Everything appended so far is on the disk."""
        sync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        os.close(self._file)

    def ordered(self) -> Iterator[Entry]:
        """All entries in input order. Holds the offsets of those that wait for an earlier one."""
        early: dict[int, int] = {}
        position = 0
        with open(self.path, "rb") as stream, open(self.path, "rb") as back:
            offset = len(stream.readline())
            for line in stream:
                early[_position(line)] = offset
                offset += len(line)
                while position in early:
                    back.seek(early.pop(position))
                    yield self._entry(back.readline())
                    position += 1
        assert not early, f"{self.path}: positions are missing before {min(early)}"

    def _entry(self, line: bytes) -> Entry:
        body = _body(line)
        if body is None:
            raise UserError(f"{self.path} was damaged while this run was using it")
        row = json.loads(body)
        return Entry(row["n"], row["id"], row["out"])


def finished(path: Path) -> Done:
    """The positions in another host's journal, which may be growing: a torn end is not read."""
    done = Done()
    if not path.exists():
        return done
    with open(path, "rb") as stream:
        stream.readline()
        for line in stream:
            if _body(line) is not None:
                done.add(_position(line))
    return done


def _position(line: bytes) -> int:
    return int(line[len(b'{"n":') : line.index(b",")])


def journal_key(path: Path) -> str | None:
    """The stage key that a journal was begun with, or None when there is none (yet)."""
    if not path.exists():
        return None
    with open(path, "rb") as stream:
        body = _body(stream.readline())
    return None if body is None else json.loads(body).get("key")


def compact_json(value: Any) -> str:
    """JSON without spaces that keeps the order of the fields; ValueError on NaN."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _body(line: bytes) -> bytes | None:
    """The object of a line without its checksum, or None when the line is torn or damaged."""
    if len(line) <= _CRC_LENGTH or not line.endswith(b'"}\n'):
        return None
    body = line[: -_CRC_LENGTH - 1]
    if line[-_CRC_LENGTH - 1 : -1] != _CRC % zlib.crc32(body):
        return None
    return body + b"}"
