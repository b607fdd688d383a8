"""The methods by name. A method is a function of a run; a new one is a file and a line here."""

from collections.abc import Callable

from selfevo_jax.evaluate.task import check_choice
from selfevo_jax.evolve.run import Run
from selfevo_jax.evolve.verified import verified

METHODS: dict[str, Callable[[Run], None]] = {"verified": verified}


def method(name: str) -> Callable[[Run], None]:
    """The method called `name`. Raises UserError with the nearest names."""
    check_choice(name, METHODS, "method")
    return METHODS[name]
