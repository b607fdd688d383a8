"""`HttpGenerator`: a `Generator` behind which any OpenAI-style server stands.

    endpoint.py  which server      calls.py   one call, repeated    spending.py  the cap
    wire.py      JSON in and out   pace.py    how often             cache.py     answers on disk
    settings.py  all of it by name            pricing.py  dry runs  ledger.py    spending on disk

Answers are yielded as they arrive and stored before that, so whatever ends a job (a failure, the
cap, the user), what was paid for is kept, and the same job goes on from there.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.cache import AnswerCache, request_key
from selfevo_jax.sample.http.calls import Calls, Limits
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.http.failures import CallFailed, Passing
from selfevo_jax.sample.http.flight import Flight, check
from selfevo_jax.sample.http.ledger import Ledger
from selfevo_jax.sample.http.pricing import Estimate
from selfevo_jax.sample.http.settings import ServerSettings
from selfevo_jax.sample.http.spending import Cap, Price, Spending
from selfevo_jax.sample.http.usage import Usage
from selfevo_jax.sample.http.wire import (
    about_prompt_tokens,
    answer_of,
    body_of,
    completion_of,
    label_body,
    labels_of,
    most_usage,
    read_reply,
    score_body,
    score_of,
)
from selfevo_jax.sample.protocol import (
    Completion,
    LabelRequest,
    Labels,
    Request,
    Score,
    ScoreRequest,
)

T = TypeVar("T", ScoreRequest, LabelRequest)
BodyFor = Callable[[Endpoint, T], dict[str, Any]]
ReadChoice = Callable[[T, dict[str, Any]], Any]


@dataclass
class Ask:
    """One completion to get: its body, its cache key, and the requests that want it."""

    key: str
    body: dict[str, Any]
    ids: list[str]


class HttpGenerator:
    """Completions and scores from a server.

    `samples_per_call` > 1 puts consecutive requests that differ only in their seed into one call
    with `n`: the prompt is paid once, and the answers are those of the first seed. `cache` is a
    file of answers by request, and of what was spent; refusals are not stored. `cap` bounds what
    may be spent on the model by all who share the file; without one, by this object. Text is what
    the server sends; `Completion.tokens` holds -1 for a token whose id the server does not tell
    (nothing at all where it does not even tell how many there are), and `logps` is empty unless
    the endpoint asks for them.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        limits: Limits | None = None,
        cap: Cap | None = None,
        cache: Path | None = None,
        samples_per_call: int = 1,
    ) -> None:
        if samples_per_call < 1:
            raise UserError(f"samples_per_call {samples_per_call} must be at least 1")
        self.endpoint, self._limits = endpoint, limits or Limits()
        self._samples = samples_per_call
        self._cache = AnswerCache(cache) if cache else None
        ledger = Ledger(self._cache.database, endpoint.name) if self._cache else None
        self.spending = Spending(endpoint.price, cap or Cap(), ledger)
        self._calls = Calls(endpoint, self._limits, self.spending)

    def __enter__(self) -> HttpGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and the cache."""
        self._calls.close()
        if self._cache:
            self._cache.close()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion for every request, as they arrive.

        Raises `RequestsFailed` after all others when the server refused some; `CapReached` or
        `ServerUnusable` after the calls under way when no more can be sent.
        """
        failed: dict[str, str] = {}
        for asks, answers in self._answers(requests):
            for ask, answer in zip(asks, answers, strict=True):
                for request_id in ask.ids:
                    if isinstance(answer, CallFailed):
                        failed[request_id] = str(answer)
                    else:
                        yield completion_of(request_id, answer)
        check(failed, self.endpoint.url)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """One score for every request, as they arrive; servers with `echo` only.

        Raises as `generate` does, and `UserError` for a request with an end of turn.
        """
        return self._each(requests, score_body, score_of)

    def labels(self, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        """Label probabilities, as far as the server tells its likeliest tokens; else -inf.

        Raises as `generate` does; a request none of whose labels was told has no answer.
        """
        return self._each(requests, label_body, partial(labels_of, self.endpoint))

    def _each(self, requests: Iterable[T], body_for: BodyFor, read: ReadChoice) -> Iterator[Any]:
        """One call for every request; its whole choice is what the cache keeps."""
        failed: dict[str, str] = {}

        def ask(request: T, stop: threading.Event) -> Any:
            body = body_for(self.endpoint, request)
            return read(request, self._choice(body, partial(read, request), stop))

        for request, found in Flight(self._limits.concurrency, ask).run(requests):
            if isinstance(found, CallFailed):
                failed[request.id] = str(found)
            else:
                yield found
        check(failed, self.endpoint.url)

    def price(self, requests: Iterable[Request]) -> Estimate:
        """What `generate` of these requests would cost. Nothing is sent."""
        return self._estimate(self._batches(map(self._ask, requests)))

    def price_scores(self, requests: Iterable[ScoreRequest]) -> Estimate:
        """The same of `score`."""
        return self._estimate(
            [self._asked(request.id, score_body(self.endpoint, request))] for request in requests
        )

    def price_labels(self, requests: Iterable[LabelRequest]) -> Estimate:
        """The same of `labels`."""
        return self._estimate(
            [self._asked(request.id, label_body(self.endpoint, request))] for request in requests
        )

    def _asked(self, id: str, body: dict[str, Any]) -> Ask:
        return Ask(request_key(self.endpoint.url, body), body, [id])

    def _estimate(self, calls: Iterable[list[Ask]]) -> Estimate:
        count = cached = guess = 0
        most = Usage()
        for asks in calls:
            fresh = [ask for ask in asks if not self._known(ask)]
            count, cached = count + len(asks), cached + len(asks) - len(fresh)
            if fresh:
                body = fresh[0].body | {"n": len(fresh)}
                most += most_usage(body, self.endpoint.limit_field)
                guess += about_prompt_tokens(body)
        return Estimate(count, cached, guess, most.completion, self.endpoint.price.of(most))

    def _answers(self, requests: Iterable[Request]) -> Iterator[tuple[list[Ask], list]]:
        """(asks, an answer or a failure for each), from the cache or the server."""
        under_way: dict[str, Ask] = {}

        def fresh() -> Iterator[list[Ask]]:
            for batch in self._batches(map(self._ask, requests)):
                asks = []
                for ask in batch:
                    if ask.key in under_way:  # asked twice at a time: paid once
                        under_way[ask.key].ids.extend(ask.ids)
                    else:
                        under_way[ask.key] = ask
                        asks.append(ask)
                if asks:
                    yield asks

        for asks, answers in Flight(self._limits.concurrency, self._get).run(fresh()):
            for ask in asks:
                del under_way[ask.key]
            failed = isinstance(answers, CallFailed)
            yield asks, [answers] * len(asks) if failed else answers

    def _ask(self, request: Request) -> Ask:
        body = body_of(self.endpoint, request)
        # The seed as it was given: servers see only 63 bits of it.
        key = request_key(self.endpoint.url, body | {"seed": request.seed})
        return Ask(key, body, [request.id])

    def _batches(self, asks: Iterator[Ask]) -> Iterator[list[Ask]]:
        """Consecutive asks that differ in their seed only, as many as go into one call."""
        same = itertools.groupby(asks, key=lambda ask: ask.body | {"seed": 0})
        for _, group in same:
            while batch := list(itertools.islice(group, self._samples)):
                yield batch

    def _known(self, ask: Ask) -> dict[str, Any] | None:
        return self._cache.get(ask.key) if self._cache else None

    def _get(self, asks: list[Ask], stop: threading.Event) -> list[dict[str, Any] | CallFailed]:
        """Answers from the cache, the missing ones by one call."""
        answers = {ask.key: self._known(ask) for ask in asks}
        missing = [ask for ask in asks if answers[ask.key] is None]
        if missing:
            answers |= zip((ask.key for ask in missing), self._call(missing, stop), strict=True)
        return [answers[ask.key] for ask in asks]

    def _call(self, asks: list[Ask], stop: threading.Event) -> list[dict[str, Any] | CallFailed]:
        """One call for these asks; its answers are stored before anything is done with them."""
        body = asks[0].body | ({"n": len(asks)} if len(asks) > 1 else {})

        def read(content: bytes):
            choices, usage = read_reply(content, len(asks))
            alone = usage if len(asks) == 1 else usage and replace(usage, completion=0)
            return [answer_of(self.endpoint, choice, alone) for choice in choices], usage

        answers = self._post(body, read, stop)
        for ask, answer in zip(asks, answers, strict=True):
            if self._cache and isinstance(answer, dict) and not answer["refused"]:
                self._cache.put(ask.key, answer)
        return answers

    def _post(self, body: dict[str, Any], read: Any, stop: threading.Event) -> Any:
        most = most_usage(body, self.endpoint.limit_field)
        return self._calls.post(body, most, secrets.token_hex(16), read, stop)

    def _choice(
        self, body: dict[str, Any], check_choice: Callable[[dict], Any], stop: threading.Event
    ) -> dict[str, Any]:
        """The only choice of a call, from the cache or the server; kept when it can be read."""
        key = request_key(self.endpoint.url, body)
        known = self._cache.get(key) if self._cache else None
        if known is not None:
            return known

        def read(content: bytes):
            (choice,), usage = read_reply(content, 1)
            try:
                check_choice(choice)
            except Passing:
                raise
            except CallFailed as failure:  # a whole answer, and billed, but of no use
                return failure, usage
            return choice, usage

        choice = self._post(body, read, stop)
        if isinstance(choice, CallFailed):
            raise choice
        if self._cache:
            self._cache.put(key, choice)
        return choice


def open_server(
    endpoint: Endpoint, settings: ServerSettings, folder: Path | None, concurrency: int = 8
) -> HttpGenerator:
    """The client of a server for a job, with `concurrency` calls at a time.

    A cap counts over all starts of a job that has a `folder`; without one, over this start.
    """
    return HttpGenerator(
        replace(endpoint, price=Price(settings.price_in, settings.price_out)),
        limits=Limits(concurrency, settings.per_minute),
        cap=Cap(settings.cap_tokens, settings.cap_money),
        cache=settings.file(folder),
    )
