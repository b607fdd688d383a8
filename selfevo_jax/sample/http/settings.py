"""How a server is used, in the words of `--server` and of a role's settings."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from pathlib import Path

from selfevo_jax.errors import UserError

FILE = "server.sqlite"  # in a job's folder, where a cap needs a file and none is given


@dataclass(frozen=True)
class ServerSettings:
    """How hard a server is asked, what that may cost, and where it is written down.

    per_minute  the most calls in a minute (0: any number)
    cap_tokens  the most tokens that may be spent on the model, all starts of the job together
    cap_money   the same in money, in the currency of the prices
    price_in    money for a million tokens of prompts
    price_out   money for a million tokens of answers
    cache       a file of the answers and of what was spent on each model; empty: none, but for a
                cap, which cannot do without one, `FILE` in the job's folder

    Raises UserError for a value out of range, or a cap on money without prices.
    """

    per_minute: float = 0.0
    cap_tokens: int | None = None
    cap_money: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    cache: str = ""

    def __post_init__(self) -> None:
        for name in ("per_minute", "cap_tokens", "cap_money", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not (0 <= value < math.inf):
                raise UserError(f"{name}={value} must be a number of at least 0")
        if self.cap_money is not None and not self.priced:
            raise UserError(
                f"cap_money={self.cap_money} needs the model's prices for a million tokens: give "
                "price_in and price_out"
            )

    @property
    def priced(self) -> bool:
        """Whether the model's prices are known."""
        return bool(self.price_in or self.price_out)

    @property
    def capped(self) -> bool:
        """Whether anything bounds what is spent."""
        return self.cap_tokens is not None or self.cap_money is not None

    def file(self, folder: Path | None) -> Path | None:
        """The cache of a job that has a `folder`, or of one that keeps nothing."""
        if self.cache:
            return Path(self.cache)
        return folder / FILE if self.capped and folder is not None else None


NUMBERS = {"cap_tokens": int, "cache": str}  # the others are floats


def server_settings(text: str) -> ServerSettings:
    """The settings in "per_minute=60,price_in=0.5". Raises UserError naming a bad one."""
    known = [field.name for field in fields(ServerSettings)]
    given: dict[str, float | int | str] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in known or name in given or not value:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
            raise UserError(
                f"--server {part}: give each of {', '.join(known)} once, as NAME=VALUE{hint}"
            )
        try:
            given[name] = NUMBERS.get(name, float)(value)
        except ValueError as error:
            raise UserError(f"--server {part}: {error}") from error
    return ServerSettings(**given)
