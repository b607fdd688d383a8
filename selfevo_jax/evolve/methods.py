"""The methods by name. A method is a function of a run; a new one is a file and a line here.

Beside the function, the file has `defaults()`: the method's own settings, by section.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ml_collections import ConfigDict

from selfevo_jax import config
from selfevo_jax.evaluate.task import check_choice
from selfevo_jax.evolve.run import Policy, Run

METHODS = ("active", "combined", "elite", "meteor", "offline", "refeval", "reflectevo", "verified")


def method(name: str) -> Callable[[Run], Policy | None]:
    """The method called `name`; what it gives is the policy it ends with, where that is one.

    Raises UserError with the nearest names.
    """
    return getattr(_module(name), name)


def defaults(name: str) -> ConfigDict:
    """Every setting of a run of method `name`, the method's own included, locked."""
    return config.defaults({"method": name, **_module(name).defaults()})


def _module(name: str) -> Any:
    check_choice(name, METHODS, "method")
    return import_module(f"selfevo_jax.evolve.{name}")
