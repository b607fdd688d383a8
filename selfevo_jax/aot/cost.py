"""Compiling a case and reading what it costs: memory, traffic, and a roofline estimate.

report = measure(Case("llama3_8b", "dpo_lora", "v5e:4x4", batch=64))
report.fits, report.hbm_bytes_per_chip, report.est_step_seconds
"""

from __future__ import annotations

import re
import time
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from selfevo_jax.aot.flops import flops
from selfevo_jax.aot.hlo import Traffic, traffic
from selfevo_jax.aot.steps import TRAIN_STEPS, Case, Program, chip_bytes, programs

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """HBM bytes of one chip while a program runs. `beside`: held without being its arguments.

    `output` is what is not written over an argument. When the compiler gave up for lack of
    memory, only `total` is known (and is what it asked for).
    """

    arguments: float
    temporaries: float
    output: float
    code: float
    beside: float
    total: float
    compiled: bool


@dataclass(frozen=True)
class Report:
    """What one step costs. Bytes and seconds are of one chip, `flops` of all chips together.

    `est_step_seconds` is the roofline, the largest of the times that compute, HBM, and links
    would take alone at their peaks: a real step takes longer. `est_mfu` counts the FLOPs that
    the model needs (nothing computed twice) against the peak over that time.
    """

    case: Case
    fits: bool
    hbm_bytes_per_chip: int
    hbm_capacity: int
    memory: dict[str, Memory]
    flops: float
    model_flops: float
    bytes_accessed: float
    collective_bytes: float
    collectives: dict[str, tuple[float, float]]
    compile_seconds: float
    est_step_seconds: float | None
    est_mfu: float | None
    bound: str | None

    def as_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def measure(case: Case) -> Report:
    """Compiles every program of a case. Raises `UserError` for sizes that cannot be placed."""
    mesh, begun = case.on_mesh(), time.monotonic()
    memory, moved, total = {}, Traffic(), 0.0
    with jax.set_mesh(mesh):
        for program in programs(case, mesh):
            memory[program.name], part = _compiled(program)
            moved.add(part, program.times)
            total += program.times * flops(program.trace().jaxpr, program.unknown_trips)
        needed = _needed_flops(case, mesh, total)
    return _report(case, memory, moved, total, needed, time.monotonic() - begun)


def _compiled(program: Program) -> tuple[Memory, Traffic]:
    lowered = program.lower()
    try:
        with warnings.catch_warnings():
            # Programs for chips that are not here cannot be read back from a compile cache.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        asked = _asked_bytes(str(error))
        if asked is None:
            raise
        asked += program.beside + chip_bytes(program.arguments)
        return Memory(0, 0, 0, 0, program.beside, asked, False), Traffic()
    stats = compiled.memory_analysis()
    parts = (
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.output_size_in_bytes - stats.alias_size_in_bytes,
        stats.generated_code_size_in_bytes,
        program.beside,
    )
    return Memory(*parts, sum(parts), True), traffic(compiled.as_text(), program.unknown_trips)


def _asked_bytes(message: str) -> float | None:
    """The temporaries that a program would have needed, from the compiler's refusal; None for
    other errors. "temporaries (47.01G) exceeds available HBM", "Used 20.1G of 15.75G hbm"."""
    match = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT]?)(?:\) exceeds| of )", message)
    return float(match[1]) * _UNITS[match[2]] if match else None


def _needed_flops(case: Case, mesh: jax.sharding.Mesh, done: float) -> float:
    """FLOPs of the same step when nothing is computed twice."""
    if case.step not in TRAIN_STEPS or case.remat == "none":
        return done
    plain = programs(replace(case, remat="none"), mesh)
    return sum(p.times * flops(p.trace().jaxpr, p.unknown_trips) for p in plain)


def _report(case, memory, moved, total, needed, seconds) -> Report:
    chip, chips = case.slice.chip, case.slice.chips
    most = max(part.total for part in memory.values())
    times = {
        "compute": total / chips / chip.peak_flops,
        "hbm": moved.hbm_bytes / chip.hbm_bandwidth,
        "links": moved.collective_bytes / chip.ici_bandwidth,
    }
    known = all(part.compiled for part in memory.values())
    bound = max(times, key=times.get) if known else None
    step = times[bound] if known else None
    return Report(
        case=case,
        fits=known and most <= chip.hbm_bytes,
        hbm_bytes_per_chip=int(most),
        hbm_capacity=chip.hbm_bytes,
        memory=memory,
        flops=total,
        model_flops=needed,
        bytes_accessed=moved.hbm_bytes,
        collective_bytes=moved.collective_bytes,
        collectives=moved.collectives,
        compile_seconds=round(seconds, 2),
        est_step_seconds=step,
        est_mfu=None if step is None else needed / chips / chip.peak_flops / step,
        bound=bound,
    )
