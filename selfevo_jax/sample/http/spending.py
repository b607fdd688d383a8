"""What a job may cost and what it has cost.

Before a call is sent, the most that it can cost is set aside; the server's own count replaces
that afterwards. So the cap holds whatever number of calls is under way. A call whose answer was
lost (time-out, cut-off body) may have been billed: it counts in full, as `uncertain`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from selfevo_jax.errors import UserError

MILLION = 1_000_000


@dataclass(frozen=True)
class Usage:
    """Tokens of one or more calls."""

    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.prompt - other.prompt, self.completion - other.completion)


@dataclass(frozen=True)
class Price:
    """Money for a million tokens, in any one currency."""

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        if not (self.prompt >= 0 and self.completion >= 0):
            raise UserError(f"prices must be numbers of at least 0, not {self}")

    def of(self, usage: Usage) -> float:
        """The money that `usage` costs."""
        return (self.prompt * usage.prompt + self.completion * usage.completion) / MILLION


FREE = Price(0.0, 0.0)


@dataclass(frozen=True)
class Cap:
    """The most a client may spend; None: no limit."""

    tokens: int | None = None
    money: float | None = None


class CapReached(UserError):
    """The next call could go beyond the cap, so it was not sent."""


class Spending:
    """Shared by all threads of a client: what is spent, and what is set aside."""

    def __init__(self, price: Price, cap: Cap) -> None:
        if cap.money is not None and price == FREE:
            raise UserError("a cap on money needs the model's prices; give a Price")
        self.price, self.cap = price, cap
        self.spent, self.uncertain, self.calls = Usage(), Usage(), 0
        self._aside = Usage()
        self._changed = threading.Condition()

    @property
    def money(self) -> float:
        """What was spent so far, uncertain calls included."""
        return self.price.of(self.spent + self.uncertain)

    def set_aside(self, most: Usage) -> None:
        """Waits until `most` fits beside the calls under way. Raises `CapReached` if it never can.

        Whoever calls this calls `settle` with the same `most` afterwards.
        """
        with self._changed:
            while not self._fits(self.spent + self.uncertain + self._aside + most):
                if not self._aside.total:
                    raise CapReached(self._message(most))
                self._changed.wait()
            self._aside += most

    def settle(self, most: Usage, used: Usage, *, certain: bool = True) -> None:
        """Replaces what was set aside by what was used (nothing, for a call that was refused)."""
        with self._changed:
            self._aside -= most
            if certain:
                self.spent += used
                self.calls += bool(used.total)
            else:
                self.uncertain += used
            self._changed.notify_all()

    def _fits(self, usage: Usage) -> bool:
        tokens, money = self.cap.tokens, self.cap.money
        return (tokens is None or usage.total <= tokens) and (
            money is None or self.price.of(usage) <= money
        )

    def _message(self, most: Usage) -> str:
        done = self.spent + self.uncertain
        return (
            f"the spending cap is reached: {done.total} tokens ({self.money:.4f}) are spent, the "
            f"next call could take {most.total} more ({self.price.of(most):.4f}), and the cap is "
            f"{self.cap}; finished answers are kept, raise the cap to go on"
        )
