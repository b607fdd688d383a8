"""How far an unfinished run is: its plan against what lies in its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

GROWING = ("records.part.jsonl", "metrics.jsonl")  # what a stage at work appends to


def progress(workdir: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"done", "planned", "stage", "amount", "lines"} of a run that is not finished, else None.

    `stage` is the first planned one that is not sealed (None: all are), `amount` what it was
    planned to do, `lines` how much of that is in its files.
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
    for name in GROWING:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                return sum(1 for _ in file)
    return 0
