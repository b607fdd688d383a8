"""One request's life: tickets to the engine, news back into the event loop, an end in any case.

Its samples and, where the prompts' own log-probabilities are wanted, the prompts' scores are asked
for together; a choice is complete when both are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from selfevo_jax.sample.memory import TextScore
from selfevo_jax.sample.session import Progress
from selfevo_jax.serve.answers import Choice, Stream, ending, prompt_text
from selfevo_jax.serve.dispatch import Dispatcher, EngineFailed, ScoreTicket, Ticket
from selfevo_jax.serve.prompts import Plan

T = TypeVar("T")
News = Progress | TextScore | EngineFailed


class Gone(Exception):
    """The client is not there any more."""


class Work:
    """The choices of one plan. Belongs to the event loop; the engine calls `_tell` alone."""

    def __init__(self, plan: Plan, dispatcher: Dispatcher) -> None:
        self._plan, self._dispatcher = plan, dispatcher
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[Sequence[Choice], News]] = asyncio.Queue()
        self._tickets: list[Ticket | ScoreTicket] = []
        self.choices = [
            Choice(index * plan.n + sample, prompt)
            for index, prompt in enumerate(plan.prompts)
            for sample in range(plan.n)
        ]

    def submit(self) -> None:
        """Queues everything. Raises `Refused` when the queue is full."""
        tickets = [*self._score_tickets(), *self._sample_tickets()]
        self._dispatcher.submit(tickets)
        self._tickets = tickets

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
        missing = {choice.index for choice in self.choices if not self._complete(choice)}
        if not missing:
            for choice in self.choices:
                yield choice, None
        while missing:
            concerned, news = await self._inbox.get()
            if isinstance(news, EngineFailed):
                raise news
            for choice in concerned:
                if isinstance(news, TextScore):
                    choice.score = news
                else:
                    choice.completion = news.completion
                if self._complete(choice):
                    missing.discard(choice.index)
                yield choice, news if isinstance(news, Progress) else None

    def _complete(self, choice: Choice) -> bool:
        sampled = self._plan.sampling is None or choice.completion is not None
        return sampled and (choice.score is not None or not self._plan.scored)

    def _sample_tickets(self) -> list[Ticket]:
        """One for every choice, unless nothing is to be added to the prompts."""
        if self._plan.sampling is None:
            return []
        return [
            Ticket(
                self._plan.request(*divmod(choice.index, self._plan.n)),
                partial(self._tell, [choice]),
            )
            for choice in self.choices
        ]

    def _score_tickets(self) -> list[ScoreTicket]:
        """One for every prompt, if they are to be scored."""
        plan = self._plan
        if not plan.scored:
            return []
        return [
            ScoreTicket(
                prompt.tokens,
                plan.alternatives,
                plan.model.adapter,
                partial(self._tell, self.choices[index * plan.n : (index + 1) * plan.n]),
            )
            for index, prompt in enumerate(plan.prompts)
        ]

    def _tell(self, concerned: Sequence[Choice], news: News) -> None:
        """From the engine's thread. When the loop is closed, nobody listens any more."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, (concerned, news))

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
