"""Floating-point operations of a traced program: its matrix products, loops multiplied out.

Counted on the jaxpr, before the compiler: 2 m n k for every product, times the lengths of the
scans around it. XLA's own analysis counts a loop's body once and adds element-wise work, which
is below 2 % of a step here.
"""

from __future__ import annotations

import math
from typing import Any


def flops(jaxpr: Any, unknown_trips: float = 1.0) -> float:
    """FLOPs over all chips of a (closed) jaxpr; `while` loops count `unknown_trips` times.

    Of a conditional the cheapest branch counts, and of a kernel what it says of itself. Splash
    attention says nothing, and leaves out blocks by conditionals: it counts nothing (about 4 % of
    a step of llama3_8b with rows of 2,048 tokens).
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation(equation, unknown_trips) for equation in jaxpr.eqns)


def _equation(equation: Any, unknown_trips: float) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "scan":
        return params["length"] * flops(params["jaxpr"], unknown_trips)
    if name == "while":
        return unknown_trips * flops(params["body_jaxpr"], unknown_trips)
    if name == "cond":
        return min(flops(branch, unknown_trips) for branch in params["branches"])
    inner = [
        value for value in params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")
    ]
    times = 1
    if name == "shard_map":
        times = math.prod(params["mesh"].shape.values())
    elif name == "pallas_call" and params["cost_estimate"] is not None:
        return float(params["cost_estimate"].flops)
    return times * sum(flops(value, unknown_trips) for value in inner)


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
