"""The register of tasks: a name and its settings give a `Task`.

A new file task is one more module with a `SPEC` and one more line in `FILE_TASKS`.
"""

import inspect
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate import boolq, gsm8k, svamp
from selfevo_jax.evaluate.file_task import FileTask
from selfevo_jax.evaluate.reasoning_gym import ReasoningGymTask, dataset_names
from selfevo_jax.evaluate.task import Task, check_choice, nearest

FILE_TASKS = {module.SPEC.name: module.SPEC for module in (boolq, gsm8k, svamp)}


def task_names() -> list[str]:
    """Every name that `get_task` takes."""
    return [*sorted(FILE_TASKS), *dataset_names()]


def get_task(name: str, **args: Any) -> Task:
    """The task called `name`.

    File tasks (boolq, gsm8k, svamp) take `data_dir` and `style`; "rg:NAME" takes `style`,
    `parse` and the settings of that reasoning-gym dataset. Raises UserError with the nearest
    names for an unknown task or setting, and the way to get the data where it is missing.
    """
    if name.startswith("rg:"):
        return ReasoningGymTask(name, **args)
    if name not in FILE_TASKS:
        check_choice(name, task_names(), "task")
    known = set(inspect.signature(FileTask).parameters) - {"spec"}
    for key in args:
        if key not in known:
            raise UserError(f"task {name} has no setting {key!r}; {nearest(key, known)}")
    return FileTask(FILE_TASKS[name], **args)
