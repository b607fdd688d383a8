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
    """Compiles every missing cell into `file` (JSON); beside it, the table itself (.md).

    Raises `UserError` when `file` holds something else or cannot be written, and when a cell
    cannot be compiled; those made before are kept.
    """
    path = Path(file)
    cells = _known(path)
    _keep(path, cells, models, steps, topologies)  # nothing is compiled that cannot be kept
    for name in topologies:
        for model in models:
            for step in steps:
                key = f"{model} {step} {name}"
                if key not in cells:
                    say(key)
                    cells[key] = _cell(model, step, name)
                    _keep(path, cells, models, steps, topologies)
    say(f"{len(cells)} cells are in {path}, the table is in {path.with_suffix('.md')}")


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
    return _facts(measure(Case(model, step, name, mesh=_mesh(step, chips), batch=rows)))


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
    size = f"{cell['hbm_bytes_per_chip'] / GIB:.1f}"
    if not cell["fits"]:
        return f"no ({size})"
    return f"**{size}**, {cell['est_mfu']:.0%}"


def _known(path: Path) -> dict[str, Any]:
    """The cells of an earlier call."""
    if path.suffix != ".json":
        raise UserError(f"--table {path}: the file of the cells must end in .json")
    try:
        cells = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; give --table another file") from error
    if not isinstance(cells, dict) or not all(map(_is_cell, cells.values())):
        raise UserError(f"{path}: no cells of such a table; give --table another file")
    return cells


def _is_cell(value: Any) -> bool:
    return isinstance(value, dict) and {"hbm_bytes_per_chip", "fits", "est_mfu"} <= value.keys()


def _keep(path: Path, cells: dict[str, Any], *axes: Sequence[str]) -> None:
    texts = {".json": json.dumps(cells, indent=1, sort_keys=True), ".md": markdown(cells, *axes)}
    try:
        for suffix, text in texts.items():
            part = path.with_suffix(f"{suffix}.part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, path.with_suffix(suffix))
    except OSError as error:
        raise UserError(
            f"{path.with_suffix(suffix)}: cannot be written: {error.strerror}"
        ) from error
