"""What was spent on a model, in the file of its answers: no start of a job begins at nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.database import Database
from selfevo_jax.sample.http.usage import Usage

COLUMNS = ("prompt", "completion", "uncertain_prompt", "uncertain_completion")  # in tokens
TABLE = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in COLUMNS)


class Ledger:
    """The tokens that all processes and starts with one file have spent on one model.

    What is set aside for a call is uncertain spending until the call is settled. So it still
    counts when the process is killed meanwhile: the server may have billed the call.
    """

    def __init__(self, database: Database, model: str) -> None:
        """`model` names the server and the model on it. Raises UserError for a bad file."""
        self._database, self._model = database, model
        database.run(f"CREATE TABLE IF NOT EXISTS spending (model TEXT PRIMARY KEY, {TABLE})")
        database.run("INSERT OR IGNORE INTO spending (model) VALUES (?)", model)

    @property
    def place(self) -> Path:
        """The file."""
        return self._database.path

    def total(self) -> Usage:
        """Everything that was spent, what is uncertain and what is set aside included."""
        rows = self._database.run(
            f"SELECT {', '.join(COLUMNS)} FROM spending WHERE model = ?", self._model
        )
        if len(rows) != 1 or not all(isinstance(n, int) and n >= 0 for n in rows[0]):
            raise UserError(
                f"the cache {self.place}: what was spent on {self._model} can no longer be read; "
                "move it away to start a new one"
            )
        prompt, completion, lost_prompt, lost_completion = rows[0]
        return Usage(prompt + lost_prompt, completion + lost_completion)

    def set_aside(self, most: Usage, fits: Callable[[Usage], bool]) -> bool:
        """Counts `most` as uncertain if the total then `fits`; whether it did."""
        with self._database.alone():
            if not fits(self.total() + most):
                return False
            self._add(Usage(), most)
            return True

    def settle(self, most: Usage, used: Usage, *, certain: bool) -> None:
        """Replaces what was set aside by what was used."""
        with self._database.alone():
            if certain:
                self._add(used, Usage() - most)
            else:
                self._add(Usage(), used - most)

    def _add(self, spent: Usage, uncertain: Usage) -> None:
        values = (spent.prompt, spent.completion, uncertain.prompt, uncertain.completion)
        changes = ", ".join(f"{name} = {name} + ?" for name in COLUMNS)
        self._database.run(f"UPDATE spending SET {changes} WHERE model = ?", *values, self._model)
