"""One request's life: tickets to the engine, news back into the event loop, an end in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from selfevo_jax.sample.memory import TextScore
from selfevo_jax.sample.session import Progress
from selfevo_jax.serve.answers import Choice, Stream, ending, prompt_text
from selfevo_jax.serve.dispatch import EngineFailed, ScoreTicket, Ticket
from selfevo_jax.serve.prompts import Plan

T = TypeVar("T")
News = Progress | TextScore | EngineFailed


class Gone(Exception):
    """The client is not there any more."""


class Work:
    """The choices of one plan. Belongs to the event loop; `_tell` alone is called by engines."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        self._tickets: list[Ticket | ScoreTicket] = []
        samples = range(plan.n if plan.sampling else 1)
        wanted = [(i, j) for i in range(len(plan.prompts)) for j in samples]
        self._wanted = wanted
        self.choices = [Choice(k, plan.prompts[i]) for k, (i, _) in enumerate(wanted)]

    def submit(self) -> None:
        """Queues everything. Raises `Refused` when the queue is full."""
        if self._plan.sampling is None and not self._plan.scored:
            return
        if self._plan.sampling is None:
            self._send([self._score_ticket(choice) for choice in self.choices])
            return
        requests = [self._plan.request(i, j) for i, j in self._wanted]
        self._send([Ticket(r, partial(self._tell, k)) for k, r in enumerate(requests)])

    def cancel(self) -> None:
        """Nobody waits for what is not finished; its rows become free."""
        for ticket in self._tickets:
            ticket.cancelled = True

    async def finished(self) -> list[Choice]:
        """All choices, complete. Raises `EngineFailed`."""
        async for _ in self._news():
            pass
        return self.choices

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """The pieces of a stream: for every choice its texts, and its ending last."""
        plan, tokenizer = self._plan, self._plan.model.tokenizer
        stops = plan.sampling.stop if plan.sampling else ()
        streams = [Stream(tokenizer, stops) for _ in self.choices]
        for choice in self.choices:
            if plan.chat or plan.echo:
                yield self._part(choice, self._opening(choice), first=True)
        async for choice, progress in self._news():
            if progress is not None and progress.completion is None:
                if text := streams[choice.index].push(progress.fresh):
                    yield self._part(choice, text)
            elif self._complete(choice):
                text = choice.completion.text if choice.completion else ""
                rest = streams[choice.index].finish(text)
                yield self._part(choice, rest) | ending(plan, choice)

    async def _news(self) -> AsyncIterator[tuple[Choice, Progress | None]]:
        """(choice, its progress; None for a score) until all choices are complete."""
        missing = sum(not self._complete(choice) for choice in self.choices)
        if not missing:
            for choice in self.choices:
                yield choice, None
        while missing:
            index, news = await self._inbox.get()
            choice = self.choices[index]
            if isinstance(news, EngineFailed):
                raise news
            if isinstance(news, TextScore):
                choice.score = news
            elif news.completion is not None:
                choice.completion = news.completion
                if self._plan.scored:
                    self._send([self._score_ticket(choice)], begun=True)
            missing -= self._complete(choice)
            yield choice, news if isinstance(news, Progress) else None

    def _complete(self, choice: Choice) -> bool:
        sampled = self._plan.sampling is None or choice.completion is not None
        return sampled and (choice.score is not None or not self._plan.scored)

    def _send(self, tickets: list[Ticket] | list[ScoreTicket], begun: bool = False) -> None:
        self._plan.model.dispatcher.submit(tickets, begun=begun)
        self._tickets += tickets

    def _score_ticket(self, choice: Choice) -> ScoreTicket:
        prompt, made = choice.prompt.tokens, choice.completion
        tokens = prompt + (made.tokens if made else ())
        start = 1 if self._plan.echo else len(prompt)
        return ScoreTicket(
            tokens, start, self._plan.alternatives, partial(self._tell, choice.index)
        )

    def _tell(self, index: int, news: News) -> None:
        """From an engine's thread. When the loop is closed, nobody listens any more."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, (index, news))

    def _opening(self, choice: Choice) -> str:
        return prompt_text(self._plan.model.tokenizer, choice.prompt) if self._plan.echo else ""

    def _part(self, choice: Choice, text: str, *, first: bool = False) -> dict[str, Any]:
        part: dict[str, Any] = {"index": choice.index, "finish_reason": None, "logprobs": None}
        if self._plan.chat:
            role = {"role": "assistant"} if first else {}
            return part | {"delta": role | {"content": text}}
        return part | {"text": text}


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is given up with `Gone` when the client disconnects."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
