"""Stages: a stage maps records to records, is named by what it depends on, and is never done twice.

A stage's key is a hash of its name, settings, code version and of the content of its inputs. Its
folder holds, in order of appearance: `records.part.jsonl` (the journal while it runs),
`records.jsonl` (the records in input order), `stage.json` (key, counts, checksums; written last: a
folder with a matching `stage.json` is finished). `timings.jsonl` is kept apart so that the other
files are the same bytes however often a run was killed.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import (
    commit,
    disk_full_is_a_message,
    file_sha256,
    read_json,
    sync,
    write_json,
)
from selfevo_jax.evolve.journal import Done, Entry, Journal, compact_json, finished, journal_key
from selfevo_jax.evolve.meter import Meter
from selfevo_jax.parallel.distributed import agreed, barrier, first, name_on, own_name
from selfevo_jax.records import Record, canonical_json

R = TypeVar("R", bound=Record)

RECORDS = "records.jsonl"
JOURNAL = "records.part.jsonl"
STAGE = "stage.json"
TIMINGS = "timings.jsonl"
TIMING_SECONDS = 10.0


@dataclass(frozen=True)
class Stage:
    """What a stage is. `inputs` maps a name to the content hash of what the stage reads.

    `version` changes when the code of the stage changes what it gives. Fewer than `least` records
    end the run with `why_least`.
    """

    name: str
    version: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    least: int = 1
    why_least: str = "the stage gave nothing"

    @property
    def key(self) -> str:
        """16 hex digits; equal keys mean equal output."""
        return hashlib.sha256(canonical_json(self.description()).encode()).hexdigest()[:16]

    def description(self) -> dict[str, Any]:
        """What the key is made of, as kept in `stage.json`."""
        return {
            "name": self.name,
            "version": self.version,
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
        }


class Item(NamedTuple):
    """One input of a stage: its position, its id, and what the work needs to know of it."""

    position: int
    id: str
    value: Any


class Work(Protocol):
    """Maps items, pulled as needed, to (item, records); items may come back in any order."""

    def __call__(self, items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]: ...


@dataclass
class StageFolder:
    """One stage's place on the disk: its state, its sealing, its checks."""

    path: Path
    _verified: set[str] = field(default_factory=set)

    def sealed(self) -> dict[str, Any] | None:
        """The content of `stage.json`, or None while the stage is not finished."""
        file = self.path / STAGE
        return read_json(file) if file.exists() else None

    def status(self, stage: Stage) -> tuple[str, str]:
        """('done' | 'part' | 'changed' | 'new', what changed or nothing)."""
        sealed = self.sealed()
        if sealed is not None:
            if sealed["key"] == stage.key:
                return "done", ""
            return "changed", difference(sealed["stage"], stage.description())
        begun = self.begun()
        if begun is None:
            return "new", ""
        return ("part", "") if begun == stage.key else ("changed", "begun with other settings")

    def begun(self) -> str | None:
        """The key of an unfinished stage here, or None."""
        begun = self.path / "begun.json"
        if begun.exists():
            return read_json(begun)["key"]
        return journal_key(self.path / JOURNAL)

    def seal(self, stage: Stage, counts: Mapping[str, int], files: Iterable[str]) -> None:
        """Writes `stage.json`, after which the stage is finished."""
        sums = {name: file_sha256(self.path / name) for name in sorted(files)}
        content = {"key": stage.key, "stage": stage.description(), "counts": dict(counts)}
        write_json(self.path / STAGE, content | {"files": sums})

    def content_hash(self) -> str:
        """One hash over the finished stage's files: what later stages depend on."""
        return hashlib.sha256(canonical_json(self._finished()["files"]).encode()).hexdigest()

    def count(self, name: str = "records") -> int:
        """A count of the finished stage."""
        return self._finished()["counts"][name]

    def verify(self) -> None:
        """Compares each file with its checksum, once per process; UserError names the bad one."""
        for name, expected in self._finished()["files"].items():
            if name in self._verified:
                continue
            file = self.path / name
            if not file.exists():
                raise UserError(f"{file} is missing; delete {self.path} and run again to remake it")
            if file_sha256(file) != expected:
                raise UserError(
                    f"{file} is corrupt: its checksum is not the one in {STAGE}. Restore it, or "
                    f"delete {self.path} and run again to remake it"
                )
            self._verified.add(name)

    def set_aside(self, workdir: Path) -> Path:
        """Moves the folder under `superseded/`, so that nothing produced is lost."""
        label = str(self.path.relative_to(workdir)).replace(os.sep, "-")
        number = 1
        while (target := workdir / "superseded" / f"{label}-{number}").exists():
            number += 1
        target.parent.mkdir(exist_ok=True)
        os.rename(self.path, target)
        self._verified.clear()
        return target

    def _finished(self) -> dict[str, Any]:
        sealed = self.sealed()
        assert sealed is not None, f"{self.path} is not finished"
        return sealed


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first few things that differ between two stage descriptions, in words."""
    old_flat, new_flat = _flat(old), _flat(new)
    changes = []
    for name in sorted(set(old_flat) | set(new_flat)):
        before, after = old_flat.get(name, "absent"), new_flat.get(name, "absent")
        if before != after and name.startswith("inputs."):
            changes.append(f"its {name.removeprefix('inputs.')} changed")
        elif before != after:
            changes.append(f"{name.removeprefix('settings.')} {before} -> {after}")
    return ", ".join(changes[:4])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def run_stage(
    folder: StageFolder,
    stage: Stage,
    items: Iterable[tuple[str, Any]],
    work: Work,
    advance: Callable[[int], None],
    meter: Meter | None = None,
) -> None:
    """Does what is still owed of a stage whose status is 'new' or 'part', and seals it.

    Several hosts share the items, each with a journal of its own.

    Args:
      items: (id, value) in input order; read again from its start after an interruption.
      work: see `Work`; it sees only the items that are not in the journal.
      advance: told how many inputs have just finished on this host (first, those in the journal).
      meter: counts the tokens of the models that the work asks.

    Raises: UserError when fewer than `stage.least` records came out, or on a full disk.
    """
    agreed(lambda: _gather(folder.path, stage.key))
    clock = StageClock(folder.path / own_name(TIMINGS), meter or Meter())
    with contextlib.closing(Journal(folder.path / own_name(JOURNAL), stage.key)) as journal:
        done = journal.done if first() else finished(folder.path / JOURNAL)
        advance(len(done))
        try:
            for item, records in work(_owed(items, done)):
                journal.append(Entry(item.position, item.id, [r.to_json() for r in records]))
                advance(1)
                clock.tick()
        finally:
            clock.stop()
        journal.sync()
        barrier()
        agreed(lambda: _finish(folder, stage, journal))


def journals(path: Path) -> list[Path]:
    """What a stage's folder may have of journals: that of host 0, and those of others."""
    return [path / JOURNAL, *sorted(path.glob(name_on("*", JOURNAL)))]


def _gather(path: Path, key: str) -> None:
    """Takes the journals of other hosts, of this run or of one that was killed, into the first."""
    if others := journals(path)[1:]:
        with contextlib.closing(Journal(path / JOURNAL, key)) as journal:
            journal.absorb(others)


def _finish(folder: StageFolder, stage: Stage, journal: Journal) -> None:
    """Orders and seals what all hosts did; `journal` is that of host 0."""
    others = range(1, jax.process_count())
    # By name: what a folder lists may be some seconds old on shared storage.
    journal.absorb(folder.path / name_on(host, JOURNAL) for host in others)
    count = _write_ordered(folder.path, journal)
    if count < stage.least:
        raise UserError(
            f"{stage.name} ended with {count} records and needs {stage.least}: {stage.why_least}"
        )
    folder.seal(stage, {"records": count, "inputs": len(journal.done)}, [RECORDS])
    journal.path.unlink()


def _owed(items: Iterable[tuple[str, Any]], done: Done) -> Iterator[Item]:
    """This host's share of what is not done: every n-th item of n hosts."""
    for position, (name, value) in enumerate(items):
        if position not in done and position % jax.process_count() == jax.process_index():
            yield Item(position, name, value)


def _write_ordered(path: Path, journal: Journal) -> int:
    """The journal's records in input order as `records.jsonl`; returns how many."""
    part, count = path / (RECORDS + ".tmp"), 0
    with (
        disk_full_is_a_message(f"All inputs of the stage are safe in {journal.path}."),
        open(part, "wb", buffering=1 << 20) as stream,
    ):
        for entry in journal.ordered():
            for row in entry.records:
                stream.write(compact_json(row).encode() + b"\n")
            count += len(entry.records)
        stream.flush()
        sync(stream.fileno())
    commit(part, path / RECORDS)
    return count


def read_records(folder: StageFolder, kind: type[R]) -> Iterator[R]:
    """The records of a finished stage, one at a time, after checking the file's checksum."""
    folder.verify()
    file = folder.path / RECORDS
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            yield kind.from_json(json.loads(line), f"{file}:{number}")


class StageClock:
    """Appends seconds and tokens of work to `timings.jsonl`: every ten seconds and at its end."""

    def __init__(self, path: Path, meter: Meter) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.meter = path, meter
        self.since = time.monotonic()
        self.inputs = 0

    def tick(self) -> None:
        """One more input is finished."""
        self.inputs += 1
        if time.monotonic() - self.since > TIMING_SECONDS:
            self.stop()

    def stop(self) -> None:
        """Writes what was spent since the last line, and starts a new one."""
        now = time.monotonic()
        line = {"seconds": round(now - self.since, 3), "inputs": self.inputs}
        line |= self.meter.take()
        safe = "The records finished so far are safe."
        with disk_full_is_a_message(safe), open(self.path, "a") as stream:
            stream.write(json.dumps(line) + "\n")
        self.since, self.inputs = now, 0
