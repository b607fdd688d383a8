"""What a job may cost and what it has cost.

Before a call is sent, the most that it can cost is set aside; the server's own count replaces
that afterwards. So the cap holds whatever number of calls is under way. A call whose answer was
lost (time-out, cut-off body) may have been billed: it counts in full, as `uncertain`. With a
ledger, the cap is one on what all starts of a job have spent.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.ledger import Ledger
from selfevo_jax.sample.http.usage import Usage

MILLION = 1_000_000


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

    def __str__(self) -> str:
        limits = {"tokens": self.tokens, "in money": self.money}
        return " and ".join(f"{n} {what}" for what, n in limits.items() if n is not None)


class CapReached(UserError):
    """The next call could go beyond the cap, so it was not sent."""


class Spending:
    """Shared by all threads of a client: what is spent, and what is set aside.

    `spent`, `uncertain` and `calls` are this client's own; what was spent before is in the ledger.
    """

    def __init__(self, price: Price, cap: Cap, ledger: Ledger | None = None) -> None:
        if cap.money is not None and price == FREE:
            raise UserError("a cap on money needs the model's prices; give a Price")
        self.price, self.cap, self._ledger = price, cap, ledger
        self.spent, self.uncertain, self.calls = Usage(), Usage(), 0
        self._aside = Usage()
        self._changed = threading.Condition()

    @property
    def money(self) -> float:
        """What this client has spent so far, uncertain calls included."""
        return self.price.of(self.spent + self.uncertain)

    def set_aside(self, most: Usage) -> None:
        """Waits until `most` fits beside the calls under way. Raises `CapReached` if it never can.

        Whoever calls this calls `settle` with the same `most` afterwards.
        """
        with self._changed:
            while not self._counted(most):
                if not self._aside.total:
                    raise CapReached(self._message(most))
                self._changed.wait()
            self._aside += most

    def settle(self, most: Usage, used: Usage, *, certain: bool = True) -> None:
        """Replaces what was set aside by what was used (nothing, for a call that was refused)."""
        with self._changed:
            if self._ledger:
                self._ledger.settle(most, used, certain=certain)
            self._aside -= most
            if certain:
                self.spent += used
                self.calls += bool(used.total)
            else:
                self.uncertain += used
            self._changed.notify_all()

    def _counted(self, most: Usage) -> bool:
        """Whether `most` fits; the ledger counts it at once, since others read there."""
        if self._ledger:
            return self._ledger.set_aside(most, self._fits)
        return self._fits(self.spent + self.uncertain + self._aside + most)

    def _fits(self, usage: Usage) -> bool:
        tokens, money = self.cap.tokens, self.cap.money
        return (tokens is None or usage.total <= tokens) and (
            money is None or self.price.of(usage) <= money
        )

    def _message(self, most: Usage) -> str:
        done = self._ledger.total() if self._ledger else self.spent + self.uncertain
        kept = f", all starts together, as kept in {self._ledger.place}" if self._ledger else ""
        return (
            f"the spending cap is reached: {self._told(done)} are spent{kept}; the next call could "
            f"take {self._told(most)} more, and the cap is {self.cap}. Finished answers are kept: "
            "raise cap_tokens or cap_money and run again to go on"
        )

    def _told(self, usage: Usage) -> str:
        money = "" if self.price == FREE else f" ({self.price.of(usage):.4f} in money)"
        return f"{usage.total} tokens{money}"
