"""The HTTP server: OpenAI's routes over an engine that lives in a thread of its own.

auth.py   who comes in    bounds.py    every field's bounds    prompts.py  text to ids
dispatch.py  the engine   work.py      one request's life      answers.py  JSON out
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from selfevo_jax.sample.http.secret import Secret
from selfevo_jax.serve import bounds
from selfevo_jax.serve.answers import Head, usage, whole_choice
from selfevo_jax.serve.auth import Guard, error_body
from selfevo_jax.serve.dispatch import RETRY_SECONDS, Dispatcher, EngineFailed
from selfevo_jax.serve.metrics import Metrics
from selfevo_jax.serve.prompts import Plan, ServedModel, plan
from selfevo_jax.serve.work import Gone, Work, unless_gone

log = logging.getLogger(__name__)
CLIENT_GONE = 499  # nobody reads it; it keeps the count of requests honest
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def make_app(
    models: Mapping[str, ServedModel], dispatcher: Dispatcher, key: Secret | None = None
) -> ASGIApp:
    """The whole application, guard included. `dispatcher` has the engine of all `models`."""
    server = Server(models, dispatcher)
    routes = [
        Route("/v1/models", server.models),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/health", server.health),
        Route("/metrics", server.metrics_text),
    ]
    handlers = {
        bounds.Refused: _refused,
        EngineFailed: _engine_failed,
        HTTPException: _http_error,
        Exception: _defect,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), key)


class Server:
    """The routes."""

    def __init__(self, models: Mapping[str, ServedModel], dispatcher: Dispatcher) -> None:
        self._models, self._dispatcher = models, dispatcher
        self._metrics = Metrics(dispatcher)
        self._started = int(time.time())

    async def models(self, request: Request) -> Response:
        """What can be asked, base and adapters alike."""
        listed = [
            {
                "id": model.name, "object": "model", "created": self._started,
                "owned_by": "selfevo", "max_model_len": model.max_length,
            }
            for model in self._models.values()
        ]  # fmt: skip
        return JSONResponse({"object": "list", "data": listed})

    async def health(self, request: Request) -> Response:
        """200 while the engine works."""
        well = self._dispatcher.alive
        return JSONResponse({"status": "ok" if well else "failed"}, 200 if well else 503)

    async def metrics_text(self, request: Request) -> Response:
        """Prometheus' format."""
        return Response(self._metrics.text(), media_type=PROMETHEUS)

    async def completions(self, request: Request) -> Response:
        """Plain prompts: texts or token ids."""
        return await self._answer(request, "completions", bounds.COMPLETIONS)

    async def chat(self, request: Request) -> Response:
        """Messages."""
        return await self._answer(request, "chat", bounds.CHAT)

    async def _answer(self, request: Request, route: str, table) -> Response:
        start, status = time.monotonic(), 500
        try:
            response = await self._respond(request, table, start)
            status = response.status_code
            return response
        except bounds.Refused as refusal:
            status = refusal.status
            raise
        except Gone:
            status = CLIENT_GONE
            self._metrics.cancelled.inc()
            return Response(status_code=CLIENT_GONE)
        finally:
            self._metrics.requests.labels(route, str(status)).inc()

    async def _respond(self, request: Request, table, start: float) -> Response:
        found = bounds.checked(bounds.read_body(await request.body()), table)
        planned = await run_in_threadpool(plan, self._models, found)
        work = Work(planned, self._dispatcher)
        work.submit()
        if planned.stream:
            return Events(planned, work, self._metrics, start)
        try:
            choices = await unless_gone(request, work.finished())
        finally:
            work.cancel()
        bill = usage(planned, choices)
        self._metrics.finished(bill, start)
        shaped = await run_in_threadpool(lambda: [whole_choice(planned, one) for one in choices])
        return JSONResponse(Head(planned).body(shaped, usage=bill))


class Events(StreamingResponse):
    """Server-sent events, closed by [DONE] (or by an error).

    The work ends with the response, also where the client left before the first event.
    """

    def __init__(self, planned: Plan, work: Work, metrics: Metrics, start: float) -> None:
        self._planned, self._work, self._metrics, self._start = planned, work, metrics, start
        self._complete = False
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._work.cancel()
            if not self._complete:
                self._metrics.cancelled.inc()

    async def _events(self) -> AsyncIterator[str]:
        planned, head = self._planned, Head(self._planned)
        more = {"usage": None} if planned.stream_usage else {}
        try:
            async with aclosing(self._work.parts()) as parts:
                async for part in parts:
                    yield _event(head.body([part], part=True, **more))
            bill = usage(planned, self._work.choices)
            self._metrics.finished(bill, self._start)
            if planned.stream_usage:
                yield _event(head.body([], part=True, usage=bill))
            self._complete = True
            yield "data: [DONE]\n\n"
        except EngineFailed as error:
            self._complete = True
            yield _event(error_body(str(error), "server_error"))


def _event(body: dict) -> str:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


async def _refused(request: Request, refusal: bounds.Refused) -> Response:
    kind = "rate_limit_error" if refusal.status == 429 else "invalid_request_error"
    headers = {"Retry-After": str(RETRY_SECONDS)} if refusal.status == 429 else None
    body = error_body(str(refusal), kind, refusal.field, refusal.code)
    return JSONResponse(body, refusal.status, headers)


async def _engine_failed(request: Request, error: EngineFailed) -> Response:
    return JSONResponse(error_body(str(error), "server_error"), 500)


async def _http_error(request: Request, error: HTTPException) -> Response:
    body = error_body(error.detail, "invalid_request_error")
    return JSONResponse(body, error.status_code, error.headers)


async def _defect(request: Request, error: Exception) -> Response:
    # Starlette logs the traceback after this; the client is told nothing of our insides.
    return JSONResponse(error_body("internal error", "server_error"), 500)
