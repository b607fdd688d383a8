"""What would make a step fit, tried; and the best mesh and micro-batch for a slice.

Nothing here is guessed: every proposal is compiled, and only what was seen to fit is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from selfevo_jax.aot.cost import Report, measure
from selfevo_jax.aot.steps import TRAIN_STEPS, Case
from selfevo_jax.errors import UserError
from selfevo_jax.parallel.mesh import BATCH_AXES

Say = Callable[[str], None]


def remedies(case: Case) -> Iterator[tuple[str, Case]]:
    """Cases that need less memory than this one, by increasing cost, with what they change."""
    chips, trains = case.slice.chips, case.step in TRAIN_STEPS
    sizes = tuple(case.on_mesh().shape.values())
    sharded = (1, sizes[0] * sizes[1], *sizes[2:])
    if sharded != sizes:
        # Copies of the parameters become shares of them; the batch is split as before.
        case = replace(case, mesh=_mesh(sharded))
        yield f"more fsdp (mesh {case.mesh})", case
    if trains and case.remat != "full":
        case = replace(case, remat="full")
        yield "remat full", case
    least = math.prod(case.on_mesh().shape[axis] for axis in BATCH_AXES)
    while trains and case.rows // 2 >= least and case.rows % 2 == 0:
        case = replace(case, micro=case.rows // 2)
        yield f"a micro-batch of {case.rows} rows", case
    split = [(1, chips // t, t) for t in (2, 4, 8) if _tensor_fits(case, t)]
    if trains:
        split += [(1, chips // s, 1, s) for s in (2, 4, 8) if _sequence_fits(case, s)]
    for sizes in split:
        micro = sizes[1] if trains else None
        yield f"mesh {_mesh(sizes)}", replace(case, mesh=_mesh(sizes), micro=micro)


def fitting(case: Case, say: Say = lambda line: None) -> tuple[str, Report] | None:
    """The first remedy that was compiled and fits: (all that it changes, its report)."""
    for what, changed in remedies(case):
        say(f"trying {what}")
        report = measure(changed)
        if report.fits:
            return changes(case, changed), report
    return None


def changes(case: Case, other: Case) -> str:
    """The options of `selfevo compile` in which two cases differ."""
    names = ("mesh", "remat", "micro", "topology")
    values = {name: (getattr(case, name), getattr(other, name)) for name in names}
    return " ".join(f"--{name} {new}" for name, (old, new) in values.items() if old != new)


def search(case: Case, say: Say = lambda line: None) -> list[Report]:
    """Compiled reports of meshes and micro-batches of a slice, the fastest that fit first.

    For every mesh the micro-batch is halved from the whole batch until a step fits; smaller
    ones would only gather the parameters more often.
    Raises `UserError` when no mesh can hold the rows.
    """
    found = []
    for mesh in _meshes(case):
        split = math.prod(mesh[:2])
        rows = case.batch
        while rows % split == 0:
            report = _tried(replace(case, mesh=_mesh(mesh), micro=_micro(case, rows)), say)
            found.append(report)
            if report.fits or case.step not in TRAIN_STEPS or rows % 2:
                break
            rows //= 2
    if not found:
        raise UserError(
            f"a batch of {case.batch} rows cannot be split over {case.slice.chips} chips: "
            "raise --batch to a multiple of the chips"
        )
    return sorted(found, key=lambda r: (not r.fits, r.est_step_seconds or math.inf))


def _tried(case: Case, say: Say) -> Report:
    report = measure(case)
    verdict = "fits" if report.fits else "does not fit"
    say(
        f"mesh {case.mesh}, {case.rows} rows at a time: {verdict}, "
        f"{report.hbm_bytes_per_chip / 2**30:.1f} GiB a chip"
    )
    return report


def _meshes(case: Case) -> list[tuple[int, int, int]]:
    """Whole sharding, copies over half the chips, and the layers split over 2, 4, 8 chips."""
    chips = case.slice.chips
    meshes = [(1, chips, 1), (2, chips // 2, 1)] if chips > 1 else [(1, 1, 1)]
    meshes += [(1, chips // t, t) for t in (2, 4, 8) if _tensor_fits(case, t)]
    return [mesh for mesh in meshes if case.batch % math.prod(mesh[:2]) == 0]


def _tensor_fits(case: Case, tensor: int) -> bool:
    config = case.config
    split = math.gcd(config.num_heads, config.num_kv_heads, config.intermediate_size)
    return case.slice.chips % tensor == 0 and split % tensor == 0


def _sequence_fits(case: Case, sequence: int) -> bool:
    return case.slice.chips % sequence == 0 and case.seq % sequence == 0


def _micro(case: Case, rows: int) -> int | None:
    return rows if case.step in TRAIN_STEPS else None


def _mesh(sizes: tuple[int, ...]) -> str:
    """The sizes as a mesh string; a sequence axis of one chip is left out."""
    return ",".join(map(str, sizes[:3] if sizes[3:] == (1,) else sizes))
