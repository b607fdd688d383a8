"""One call to the server: sent, read within bounds, repeated while the failure may pass."""

from __future__ import annotations

import email.utils
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import tenacity

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.http.failures import CallFailed, Passing, ServerUnusable
from selfevo_jax.sample.http.pace import Pace
from selfevo_jax.sample.http.secret import Secret
from selfevo_jax.sample.http.spending import Spending
from selfevo_jax.sample.http.usage import Usage

MOST_REPLY_BYTES = 64 * 2**20
HOPELESS = (401, 402, 403, 404, 405)  # for every request alike
PASSING = (408, 409, 425, 429)
T = TypeVar("T")
Read = Callable[[bytes], tuple[T, Usage | None]]  # a reply's body -> its value and the bill


@dataclass(frozen=True)
class Limits:
    """How hard a server is asked: `concurrency` calls at once, `per_minute` at most (0: any).

    A call that takes longer than `timeout` seconds counts as lost. A call is sent at most
    `attempts` times; between two of them lie `backoff` seconds, doubled each time, with jitter,
    at most `longest_backoff`, and never less than the server's Retry-After. A server that asks
    for more than `patience` seconds counts as gone.
    """

    concurrency: int = 8
    per_minute: float = 0.0
    timeout: float = 600.0
    attempts: int = 10
    backoff: float = 1.0
    longest_backoff: float = 60.0
    patience: float = 900.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.attempts < 1 or not self.timeout > 0:
            raise UserError(f"concurrency, attempts and timeout must be positive: {self}")


class BearerKey(httpx.Auth):
    """Adds the key to a request at the moment it is sent, so that no object of ours holds it."""

    def __init__(self, key: Secret) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request):
        request.headers["Authorization"] = f"Bearer {self._key.reveal()}"
        yield request


class Calls:
    """Posts bodies to an endpoint, for several threads."""

    def __init__(self, endpoint: Endpoint, limits: Limits, spending: Spending) -> None:
        self._endpoint, self._limits, self._spending = endpoint, limits, spending
        self._pace = Pace(limits.per_minute)
        self._answered = -math.inf  # when the last good reply came
        self._client = httpx.Client(
            auth=BearerKey(endpoint.key) if endpoint.key else None,
            timeout=limits.timeout,
            limits=httpx.Limits(max_connections=limits.concurrency),
            follow_redirects=False,  # a redirect would take the key to another host
            trust_env=not endpoint.loopback,
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def post(
        self, body: dict[str, Any], most: Usage, name: str, read: Read[T], stop: threading.Event
    ) -> T:
        """The value `read` finds in the first reply for which it succeeds.

        `name` goes along as Idempotency-Key: a server that knows it bills a repetition once.
        `stop` ends all waiting. Raises `CallFailed`, `ServerUnusable`, or `CapReached` before a
        call that is too dear.
        """
        began, content = time.monotonic(), json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": name}
        try:
            return self._retrying(stop)(self._attempt, content, headers, most, read, stop)
        except Passing as failure:
            if stop.is_set():
                raise CallFailed(f"given up, the job was stopped ({failure})") from failure
            if self._answered > began:  # others were, meanwhile: it is this one that fails
                raise CallFailed(f"in {self._limits.attempts} attempts: {failure}") from failure
            raise ServerUnusable(
                f"{self._endpoint.url} did not answer in {self._limits.attempts} attempts, the "
                f"last: {failure}; finished answers are kept, run again later"
            ) from failure

    def _retrying(self, stop: threading.Event) -> tenacity.Retrying:
        limits = self._limits
        backoff = tenacity.wait_exponential(limits.backoff, limits.longest_backoff)
        jittered = backoff + tenacity.wait_random(0, limits.backoff)
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Passing),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(limits.attempts),
                tenacity.stop_when_event_set(stop),
            ),
            wait=lambda state: jittered(state) + (state.outcome.exception().after or 0.0),
            sleep=stop.wait,
            reraise=True,
        )

    def _attempt(
        self,
        content: bytes,
        headers: Mapping[str, str],
        most: Usage,
        read: Read[T],
        stop: threading.Event,
    ) -> T:
        self._pace.wait(stop)
        self._spending.set_aside(most)
        used, certain = Usage(), True
        try:
            if stop.is_set():
                raise CallFailed("given up, the job was stopped")
            value, usage = read(self._send(content, headers))
            self._answered = time.monotonic()
            used = most if usage is None else usage
            return value
        except Passing as failure:
            if failure.billed:
                used, certain = most, False
            if failure.after:
                self._pace.hold(failure.after)
            raise
        finally:
            self._spending.settle(most, used, certain=certain)

    def _send(self, content: bytes, headers: Mapping[str, str]) -> bytes:
        """The body of a reply with status 200. Raises `Passing`, `CallFailed`, `ServerUnusable`."""
        url, deadline = self._endpoint.url, time.monotonic() + self._limits.timeout
        try:
            with self._client.stream("POST", url, content=content, headers=headers) as reply:
                body = _read(reply, deadline, self._endpoint.key)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Passing(f"no connection: {type(error).__name__}") from error
        except httpx.TransportError as error:
            raise Passing(f"the reply was lost: {type(error).__name__}", billed=True) from error
        except httpx.DecodingError as error:
            raise Passing("the reply is garbled", billed=True) from error
        if reply.status_code != 200:
            raise self._refusal(reply.status_code, reply.headers, body)
        return body

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        text = body[:300].decode("utf-8", "replace")
        reason = f"{self._endpoint.url} replied with status {status}: {text}"
        if status in HOPELESS or 300 <= status < 400 or b"insufficient_quota" in body:
            return ServerUnusable(f"{reason}; mend this, then run again")
        if status not in PASSING and status < 500:
            return CallFailed(reason)
        after = retry_after(headers)
        if after is not None and after > self._limits.patience:
            return ServerUnusable(f"{reason}; it asks to come back in {after:.0f} s")
        return Passing(reason, after=after)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply asks to wait (RFC 9110 10.2.3: a number, or a date).

    A date is compared with the server's own clock where it tells that.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until = _date(text)
    if until is None:
        return None
    now = _date(headers.get("Date", "")) or time.time()
    return max(until - now, 0.0)


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _read(reply: httpx.Response, deadline: float, key: Secret | None) -> bytes:
    """The whole body, without the key, within bounds of size and time. Raises `Passing`."""
    parts, size = [], 0
    for part in reply.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > MOST_REPLY_BYTES:
            raise Passing(f"the reply is longer than {MOST_REPLY_BYTES} bytes", billed=True)
        if time.monotonic() > deadline:
            raise Passing("the reply took too long", billed=True)
    body = b"".join(parts)
    return key.scrub(body) if key else body
