"""Which server, which model, and how it may be asked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.secret import Secret
from selfevo_jax.sample.http.spending import FREE, Price

PATHS = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-style server and a model on it.

    `base_url` ends where `/chat/completions` is appended, usually in /v1. With `api`
    "completions" the messages' contents, joined by newlines, are the prompt. `logprobs` asks
    for the log-probability of each token. `token_ids` asks for the ids too (vLLM and
    `selfevo serve` know that). `limit_field` is what the server calls the most tokens of an
    answer. Raises UserError for an address that a key must not be sent to.
    """

    base_url: str
    model: str
    api: Literal["chat", "completions"] = "chat"
    key: Secret | None = None
    logprobs: bool = False
    token_ids: bool = False
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    price: Price = FREE
    loopback: bool = field(init=False)

    def __post_init__(self) -> None:
        parts = _split(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("base_url must look like https://host/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                f"the base_url of {parts.hostname} must not hold a user, a password or a query; "
                "put the key into the environment or a file"
            )
        if self.api not in PATHS:
            raise UserError(f"api {self.api!r} must be one of {', '.join(PATHS)}")
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        object.__setattr__(self, "loopback", is_loopback(parts.hostname))
        if self.key is not None and parts.scheme == "http" and not self.loopback:
            raise UserError(f"a key is not sent over plain http to {parts.hostname}; use https")

    @property
    def name(self) -> str:
        """The server and the model, as commands write them."""
        return f"{self.base_url}#{self.model}"

    @property
    def url(self) -> str:
        """Where requests are posted."""
        return self.base_url + PATHS[self.api]


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # read here: a bad one is found nowhere else
    except ValueError as error:
        raise UserError(
            f"base_url is no address ({error}); it looks like https://host/v1"
        ) from error
    return parts


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine only; names besides localhost are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
