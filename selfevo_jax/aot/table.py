"""The table of `docs/pods.md`: which model trains and samples on which slice.

Cells are kept in a JSON file as they are compiled, so that the same command goes on after it
was stopped; the page is written from that file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfevo_jax.aot.cost import Report, measure
from selfevo_jax.aot.steps import Case
from selfevo_jax.errors import UserError
from selfevo_jax.parallel.topologies import topology

GIB = 2**30
ROWS_A_CHIP = 1
DECODE_ROWS_A_CHIP = 8


def make_table(
    file: str,
    models: Sequence[str],
    steps: Sequence[str],
    topologies: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Compiles every missing cell into `file` (JSON), and writes `file` with suffix .md."""
    path = Path(file)
    cells = json.loads(path.read_text()) if path.exists() else {}
    for name in topologies:
        for model in models:
            for step in steps:
                key = f"{model} {step} {name}"
                if key not in cells:
                    say(key)
                    cells[key] = _cell(model, step, name)
                    _write(path, json.dumps(cells, indent=1, sort_keys=True))
                    _write(path.with_suffix(".md"), markdown(cells, models, steps, topologies))


def markdown(
    cells: dict[str, Any], models: Sequence[str], steps: Sequence[str], topologies: Sequence[str]
) -> str:
    """The cells as a Markdown table: GiB a chip of HBM, estimated MFU; bold where it fits."""
    lines = [f"| model | step | {' | '.join(topologies)} |", "|---" * (2 + len(topologies)) + "|"]
    for model in models:
        for step in steps:
            texts = [_text(cells.get(f"{model} {step} {name}")) for name in topologies]
            lines.append(f"| {model} | {step} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _cell(model: str, step: str, name: str) -> dict[str, Any]:
    chips = topology(name).chips
    rows = chips * (DECODE_ROWS_A_CHIP if step == "decode" else ROWS_A_CHIP)
    try:
        report = measure(Case(model, step, name, mesh=_mesh(step, chips), batch=rows))
    except UserError as error:
        return {"error": str(error)}
    return _facts(report)


def _mesh(step: str, chips: int) -> str:
    """Training splits everything over all chips; decoding splits layers over up to 4 of them."""
    tensor = min(4, chips) if step == "decode" else 1
    return f"1,{chips // tensor},{tensor}"


def _facts(report: Report) -> dict[str, Any]:
    names = (
        "fits", "hbm_bytes_per_chip", "hbm_capacity", "flops", "bytes_accessed",
        "collective_bytes", "compile_seconds", "est_step_seconds", "est_mfu", "bound",
    )  # fmt: skip
    return {**asdict(report.case), **{name: getattr(report, name) for name in names}}


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if "error" in cell:
        return "n/a"
    size = f"{cell['hbm_bytes_per_chip'] / GIB:.1f}"
    if not cell["fits"]:
        return f"no ({size})"
    return f"**{size}**, {cell['est_mfu']:.0%}"


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
