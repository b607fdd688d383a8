"""How far an unfinished run is: its plan against what lies in its folder."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from selfevo_jax.parallel.distributed import name_on

JOURNAL = "records.part.jsonl"  # on each host one, see `evolve.journal`


def progress(workdir: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"done", "planned", "stage", "amount", "lines"} of a run that is not finished, else None.

    `stage` is the first planned one that is not sealed (None: all are), `amount` what it was
    planned to do, `lines` how much of that is in its files, on all hosts.
    """
    if run.get("finished") is not False:
        return None
    plan = run.get("plan") or []
    owed = [step for step in plan if not (workdir / step["stage"] / "stage.json").exists()]
    now = owed[0] if owed else None
    return {
        "done": len(plan) - len(owed),
        "planned": len(plan),
        "stage": now and now["stage"],
        "amount": now and now["amount"],
        "lines": _lines(workdir / now["stage"]) if now else 0,
    }


def _lines(folder: Path) -> int:
    """Steps of a training; of another stage records, or inputs where those are more."""
    if (folder / "metrics.jsonl").is_file():
        return sum(1 for _ in _whole(folder / "metrics.jsonl"))
    journals = [folder / JOURNAL, *folder.glob(name_on("*", JOURNAL))]
    entries = [row for path in journals for row in _entries(path)]
    return max(len(entries), sum(entries))


def _entries(path: Path) -> Iterator[int]:
    """How many records each finished input of a journal gave; its first line is no input."""
    for line in islice(_whole(path), 1, None):
        yield len(json.loads(line)["out"])


def _whole(path: Path) -> Iterator[bytes]:
    """The lines of a file that is being written to, without the beginning of a last one.

    None where it is gone: a stage that has just been finished takes its journals away.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))
