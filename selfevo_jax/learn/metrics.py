"""The metrics of a fit on disk: `metrics.jsonl` (the same bytes on every run) and, apart from it,
`timings.jsonl` (wall clock). After a resume each step stands in the metrics exactly once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfevo_jax.parallel.distributed import first


class MetricsLog:
    """Appends one line a step. `done`: steps already behind the fit; later lines are dropped.

    With several hosts only host 0 writes.
    """

    def __init__(self, folder: Path, done: int):
        self._writes = first()
        self.rows: list[dict[str, Any]] = []
        self._files = {}
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics", "timings"):
            path = folder / f"{name}.jsonl"
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            if self._writes:
                _replace(path, b"".join(lines[:done]))
                self._files[name] = path.open("a", encoding="utf-8")
            if name == "metrics":
                self.rows = [json.loads(line) for line in lines[:done]]

    def add(self, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """Writes the lines of a step."""
        self.rows.append(dict(metrics))
        for name, row in (("metrics", metrics), ("timings", timings)):
            if self._writes:
                self._files[name].write(json.dumps(row) + "\n")
                self._files[name].flush()

    def sync(self) -> None:
        """Waits until the lines are on disk (before a checkpoint that counts on them)."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)
