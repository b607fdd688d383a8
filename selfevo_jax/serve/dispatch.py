"""The engine's thread: requests of all connections, for all models, share its continuous batch.

Connections live in the event loop, the engine in its thread. A `Ticket` goes there, `Progress`
comes back through the ticket's `tell`; a ticket whose connection is gone is marked cancelled and
its row is free at the engine's next step.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.memory import TextScore
from selfevo_jax.sample.protocol import Request
from selfevo_jax.sample.session import Progress
from selfevo_jax.serve.bounds import Refused

log = logging.getLogger(__name__)
RETRY_SECONDS = 1


class EngineFailed(Exception):
    """The engine could not finish this request; a defect, told with status 500."""


@dataclass(eq=False)
class Ticket:
    """A completion to sample. `tell` is called in the engine's thread."""

    request: Request
    tell: Callable[[Progress | EngineFailed], None]
    cancelled: bool = False


@dataclass(eq=False)
class ScoreTicket:
    """A text whose tokens, but for the first, are wanted with their `top` alternatives."""

    tokens: tuple[int, ...]
    top: int
    adapter: str | None
    tell: Callable[[TextScore | EngineFailed], None]
    cancelled: bool = False


class Dispatcher:
    """Feeds an engine. `most_waiting` bounds the tickets that have not been started."""

    def __init__(self, engine: JaxGenerator, most_waiting: int = 2048) -> None:
        self._engine, self._most = engine, most_waiting
        self._waiting: deque[Ticket] = deque()
        self._scores: deque[ScoreTicket] = deque()
        self._running: dict[str, Ticket] = {}
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are still worked on."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Tickets that have not been started."""
        return len(self._waiting) + len(self._scores)

    @property
    def running(self) -> int:
        """Tickets inside the engine."""
        return len(self._running)

    def submit(self, tickets: Sequence[Ticket | ScoreTicket]) -> None:
        """Puts all of them in the queue, or none. Raises `Refused` (429) when it is full."""
        with self._changed:
            if self.waiting + len(tickets) > self._most:
                raise Refused("the queue is full, come back later", status=429, code="queue_full")
            for ticket in tickets:
                (self._scores if isinstance(ticket, ScoreTicket) else self._waiting).append(ticket)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread after the step it is in; unfinished tickets are told."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._fail(EngineFailed("the server is shutting down"))

    def _run(self) -> None:
        while not self._closing:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self._scores)
            try:
                self._work()
            # Whatever breaks one batch must not end the service: those in it are told.
            except Exception:
                log.exception("the engine failed; its requests are answered with an error")
                self._fail(EngineFailed("the engine failed"), waiting=False)

    def _work(self) -> None:
        """Until nothing waits. Scores are computed between steps, one batch at a time."""
        self._score_some()
        if not self._waiting:
            return
        for step in self._engine.stream(_Feed(self._next), self._is_cancelled):
            for progress in step:
                self._deliver(progress)
            self._score_some()
            if self._closing:
                return

    def _next(self) -> Request | None:
        """The next request that somebody still waits for; None: none at the moment."""
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.cancelled:
                self._running[ticket.request.id] = ticket
                return ticket.request
        return None

    def _is_cancelled(self, request: Request) -> bool:
        cancelled = self._running[request.id].cancelled
        if cancelled:
            del self._running[request.id]
        return cancelled

    def _deliver(self, progress: Progress) -> None:
        ticket = self._running[progress.request.id]
        if progress.completion is not None:
            del self._running[progress.request.id]
        if not ticket.cancelled:
            ticket.tell(progress)

    def _score_some(self) -> None:
        """One batch of texts that want equally many alternatives."""
        batch: list[ScoreTicket] = []
        while self._scores and len(batch) < self._engine.prompt_rows:
            ticket = self._scores.popleft()
            if ticket.cancelled:
                continue
            if batch and ticket.top != batch[0].top:
                self._scores.appendleft(ticket)
                break
            batch.append(ticket)
        if not batch:
            return
        try:
            texts, adapters = [t.tokens for t in batch], [t.adapter for t in batch]
            scores = self._engine.score_tokens(texts, batch[0].top, adapters)
        except BaseException:
            for ticket in batch:
                ticket.tell(EngineFailed("the engine failed"))
            raise
        for ticket, score in zip(batch, scores, strict=True):
            ticket.tell(score)

    def _fail(self, error: EngineFailed, *, waiting: bool = True) -> None:
        concerned: list[Ticket | ScoreTicket] = list(self._running.values())
        self._running.clear()
        if waiting:
            concerned += [*self._waiting, *self._scores]
            self._waiting.clear()
            self._scores.clear()
        for ticket in concerned:
            ticket.tell(error)


class _Feed:
    """An iterator that may have more after it said that it had nothing."""

    def __init__(self, take: Callable[[], Request | None]) -> None:
        self._take = take

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> Request:
        request = self._take()
        if request is None:
            raise StopIteration
        return request
