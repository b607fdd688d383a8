"""The outermost layer: who may come in, and how much they may bring. It guards every route."""

from __future__ import annotations

import asyncio
import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfevo_jax.sample.http.endpoint import is_loopback
from selfevo_jax.sample.http.secret import Secret
from selfevo_jax.serve.bounds import MOST_BYTES

BODY_SECONDS = 60.0  # for the whole body to arrive


def error_body(
    message: str, kind: str, field: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


class Guard:
    """Lets a request through when it has the key (if there is one) and a body of sane size.

    Without a key only loopback may ask, under a loopback name: a web page cannot reach the
    server by a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, key: Secret | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = dict(scope["headers"])
        if self._key is not None and not self._has_key(headers):
            body = error_body("a valid key is needed", "authentication_error", code="invalid_key")
            refusal = JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
        elif self._key is None and not _from_here(headers):
            refusal = JSONResponse(error_body("unknown host name", "permission_error"), 403)
        elif scope["method"] != "POST":
            return await self._app(scope, receive, send)
        else:
            content = await _body(headers, receive)
            if isinstance(content, bytes):
                return await self._app(scope, _Replay(content, receive), send)
            refusal = content
        await refusal(scope, receive, send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        given = headers.get(b"authorization", b"")
        return hmac.compare_digest(given, b"Bearer " + self._key.reveal().encode())


class _Replay:
    """`receive` for the app: the body that was already read, then what else comes."""

    def __init__(self, content: bytes, receive: Receive) -> None:
        self._content: bytes | None = content
        self._receive = receive

    async def __call__(self) -> Message:
        if self._content is None:
            return await self._receive()
        content, self._content = self._content, None
        return {"type": "http.request", "body": content, "more_body": False}


def _from_here(headers: dict[bytes, bytes]) -> bool:
    host = headers.get(b"host", b"").decode("latin-1")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name)


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes | JSONResponse:
    """The body, or the refusal: too long, too slow."""
    too_long = error_body(f"the body has more than {MOST_BYTES} bytes", "invalid_request_error")
    close = {"Connection": "close"}  # what else they send is not read
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > MOST_BYTES:
        return JSONResponse(too_long, 413, close)
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                content += message.get("body", b"")
                if len(content) > MOST_BYTES:
                    return JSONResponse(too_long, 413, close)
                if message["type"] != "http.request" or not message.get("more_body"):
                    return bytes(content)
    except TimeoutError:
        slow = error_body("the body did not arrive in time", "invalid_request_error")
        return JSONResponse(slow, 408, close)
