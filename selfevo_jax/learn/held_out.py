"""Held-out prompts: which they are, when they are measured, and what their losses decide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.text.render import TokenExample

LOSS = "eval_loss"


def split_by_prompt(
    examples: Sequence[TokenExample], share: float, seed: int
) -> tuple[list[TokenExample], list[TokenExample]]:
    """(to train on, held out): about `share` of the distinct prompts, by a hash with `seed`.

    An example's side depends on its prompt alone, so a prompt with several examples is never on
    both, and adding data moves nothing. Raises UserError when a side would be empty.
    """
    if not share:
        return list(examples), []
    held = {example.id for example in examples if _place(example, seed) < share}
    sides = [e for e in examples if e.id not in held], [e for e in examples if e.id in held]
    if not all(sides):
        raise UserError(
            f"learn.eval_share {share} of {len(examples)} examples leaves "
            f"{len(sides[0])} to train on and {len(sides[1])} held out; both need some"
        )
    return sides


def _place(example: TokenExample, seed: int) -> float:
    """A number in [0, 1) drawn by the prompt's tokens."""
    digest = hashlib.sha256(seed.to_bytes(8, "little", signed=True))
    digest.update(example.prompt.tokens.astype("<i4").tobytes())
    return int.from_bytes(digest.digest()[:8], "big") / 2**64


class Course:
    """How the held-out loss went; read from the metrics, so a resumed fit decides the same."""

    def __init__(self, settings: FitSettings, rows: Iterable[Mapping[str, Any]] = ()):
        self._patience = settings.patience
        self.best: float | None = None
        self.best_step: int | None = None
        self._since = 0
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Takes in a step's metrics; whether they are the best so far."""
        if LOSS not in row:
            return False
        if self.best is None or row[LOSS] < self.best:
            self.best, self.best_step, self._since = row[LOSS], row["step"] + 1, 0
            return True
        self._since += 1
        return False

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return self._patience is not None and self._since >= self._patience
