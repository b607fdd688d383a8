"""What MBPP and HumanEval share: replies that are run in the sandbox, and pass@k."""

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from selfevo_jax.evaluate.benchmark import Read, Reading
from selfevo_jax.evaluate.data import Row
from selfevo_jax.judge.checkers import Check
from selfevo_jax.judge.sandbox import Outcome, Sandbox

CheckCode = Callable[[Sandbox, dict, str], Outcome]
log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def sandbox() -> Sandbox:
    """The one sandbox of this process; UserError where programs cannot be run safely.

    What the platform lets it enforce is logged.
    """
    made = Sandbox()
    log.info("%s", made.enforced.report())
    return made


def passes(check: CheckCode, reference: str) -> Read:
    """pass@1 of a reply. `reference` is the row's field with a right one: see `_counts`.

    A program that does not count has no score: it is counted apart.
    """

    def read(text: str, row: Row) -> Reading:
        outcome = check(sandbox(), dict(row), text)
        if not _counts(outcome, text, check, row, reference):
            return Reading(None, {})
        return Reading(outcome.name, {"pass@1": float(outcome.passed)})

    return read


def verdict(check: CheckCode, reference: str) -> Callable[[str, str, Mapping[str, Any]], Check]:
    """The same as the check of a run's task; the prompt's meta holds the row."""

    def mark(text: str, gold: str, meta: Mapping[str, Any]) -> Check:
        outcome = check(sandbox(), dict(meta), text)
        counts = _counts(outcome, text, check, meta, reference)
        return Check(float(outcome.passed), outcome.passed, outcome.name if counts else None)

    return mark


def _counts(outcome: Outcome, text: str, check: CheckCode, row: Row, reference: str) -> bool:
    """Whether an outcome is the program's doing.

    What only the program's own value made unsupported is: the row's reference has none of that.
    Else a program could take itself out of the figures by what it returns.
    """
    if outcome.name == "unsupported":
        return check(sandbox(), dict(row), row[reference]).judged
    return outcome.judged or len(text) > sandbox().limits.source_bytes
