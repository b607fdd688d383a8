"""What `/metrics` shows (Prometheus)."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from selfevo_jax.serve.dispatch import Dispatcher

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of one server; labels are from closed sets, never from a request."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.registry = CollectorRegistry()
        named = {"registry": self.registry}
        self.requests = Counter(
            "selfevo_requests", "Requests by route and status", ("route", "status"), **named
        )
        self.tokens = Counter("selfevo_tokens", "Tokens of finished requests", ("kind",), **named)
        self.cancelled = Counter("selfevo_cancelled", "Requests whose client went away", **named)
        self.seconds = Histogram(
            "selfevo_request_seconds", "Time to the whole answer", buckets=SECONDS, **named
        )
        waiting = Gauge("selfevo_waiting", "Completions in the queue", **named)
        running = Gauge("selfevo_running", "Completions in the engine", **named)
        waiting.set_function(lambda: dispatcher.waiting)
        running.set_function(lambda: dispatcher.running)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def finished(self, bill: dict[str, int], start: float) -> None:
        """Counts the tokens of an answer, and its time since `start` (monotonic)."""
        self.seconds.observe(time.monotonic() - start)
        self.tokens.labels("prompt").inc(bill["prompt_tokens"])
        self.tokens.labels("completion").inc(bill["completion_tokens"])
