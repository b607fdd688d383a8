"""Runs model-written Python: no network, no files but its own, bounded, and unable to mark itself.

The program and its tests run in two cages (`cage`), each a process of its own behind namespaces,
limits and filters (`inside.namespaces`, `inside.filters`). Calls cross between them as data
(`inside.values`, `inside.programs`); the verdict leaves the tests' cage over a pipe of its own.
"""

from selfevo_jax.judge.sandbox.outcome import Enforced, Limits, Outcome
from selfevo_jax.judge.sandbox.runner import Sandbox, platform
from selfevo_jax.judge.sandbox.tasks import check_humaneval, check_mbpp, extract_code

__all__ = [
    "Enforced", "Limits", "Outcome", "Sandbox", "check_humaneval", "check_mbpp", "extract_code",
    "platform",
]  # fmt: skip
