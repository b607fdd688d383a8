"""What each array of a step gets on a slice that is not here."""

from __future__ import annotations

from selfevo_jax.aot.steps import Case, parameters
from selfevo_jax.parallel import placement
from selfevo_jax.parallel.placement import Placement


def placements(case: Case) -> list[Placement]:
    """Everything that a step keeps in HBM from one call to the next."""
    return placement.placements(parameters(case, case.on_mesh()))


def warnings(case: Case) -> list[str]:
    """One line for every big array that each chip holds whole."""
    kept = parameters(case, case.on_mesh())
    return placement.replication_warnings(kept, case.slice.chips)
