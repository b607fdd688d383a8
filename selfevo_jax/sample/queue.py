"""The requests still waiting, grouped by prompt; read from their iterable only as needed.

Jobs are decoded together only with jobs of the same cache length, which follows from the
request alone: sums over a longer cache are rounded differently, and an answer must not depend
on its neighbours. Lengths are few (powers of two), so most runs have one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from selfevo_jax.errors import UserError
from selfevo_jax.sample.protocol import MAX_STOP_TOKENS, Request
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """A request ready to run: its prompt's tokens, how many more fit, what ends it, and the
    length of the cache it is decoded in."""

    request: Request
    prompt: tuple[int, ...]
    limit: int
    stops: tuple[int, ...]
    length: int


@dataclass
class Group:
    """All waiting jobs of one prompt (and length), which is read once for all of them."""

    length: int
    prompt: tuple[int, ...]
    jobs: deque[Job]


class Queue:
    """Waiting jobs by prompt, in order of first arrival; at most `window` at a time.

    `requests` may end and have more later (a server's does): it is asked again at every look.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        tokenizer: Tokenizer,
        *,
        lengths: Sequence[int],
        max_length: int,
        window: int,
    ) -> None:
        self._source: Iterator[Request] = iter(requests)
        self._tokenizer, self._max_length, self._window = tokenizer, max_length, window
        self._lengths = lengths
        self._groups: dict[tuple[int, tuple[int, ...]], Group] = {}
        self._waiting = 0
        self._passed = 0  # jobs taken before the one that waits longest
        self._last: tuple[tuple[object, str], list[int]] | None = None

    def next_length(self) -> int | None:
        """The cache length of the job that waits longest; None when no job is left."""
        if not self._groups:
            self._read()
        return next((group.length for group in self._groups.values()), None)

    def take(self, count: int, length: int) -> list[Group]:
        """Up to `count` prompts of this length with their jobs, as the window has them.

        None when the job that waits longest has another length and `window` jobs were taken
        before it: its turn comes when what is being decoded is through.
        """
        oldest = next(iter(self._groups.values()), None)
        if oldest is not None and oldest.length != length and self._passed >= self._window:
            return []
        while self._count(length) < count and self._waiting < self._window and self._read():
            pass
        self._read_same_prompts()
        keys = [key for key in self._groups if key[0] == length][:count]
        taken = [self._groups.pop(key) for key in keys]
        count = sum(len(group.jobs) for group in taken)
        self._waiting -= count
        first = next(iter(self._groups.values()), None)
        self._passed = self._passed + count if first is oldest and oldest is not None else 0
        return taken

    def _count(self, length: int) -> int:
        return sum(group.length == length for group in self._groups.values())

    def _read_same_prompts(self) -> None:
        """Takes in what follows while it repeats a known prompt: its samples belong together."""
        known = len(self._groups)
        while self._waiting < self._window and len(self._groups) == known and self._read():
            pass

    def _read(self) -> bool:
        request = next(self._source, None)
        if request is None:
            return False
        job = self._job(request)
        empty = Group(job.length, job.prompt, deque())
        self._groups.setdefault((job.length, job.prompt), empty).jobs.append(job)
        self._waiting += 1
        return True

    def _job(self, request: Request) -> Job:
        prompt = tuple(self._render(request))
        if not prompt:
            raise UserError(f"request {request.id}: its prompt has no tokens; give it some text")
        if len(prompt) > self._max_length - 1:
            raise UserError(
                f"request {request.id}: its prompt has {len(prompt)} tokens, but max_length "
                f"{self._max_length} leaves room for {self._max_length - 1}; "
                "shorten it or raise max_length"
            )
        stops = (*self._tokenizer.eos_ids, *request.sampling.stop_token_ids)
        if len(stops) > MAX_STOP_TOKENS:
            raise UserError(
                f"request {request.id}: {len(stops)} stop tokens, the model's own included; "
                f"at most {MAX_STOP_TOKENS} are possible"
            )
        limit = min(request.sampling.max_new_tokens, self._max_length - len(prompt))
        length = next(size for size in self._lengths if size >= len(prompt) + limit)
        return Job(request, prompt, limit, stops, length)

    def _render(self, request: Request) -> list[int]:
        """The prompt's tokens; samples of one prompt usually follow each other."""
        if request.tokens is not None:
            return list(request.tokens)
        key = (request.messages, request.prefix)
        if self._last is None or self._last[0] != key:
            self._last = (key, render_prompt(self._tokenizer, request.messages, request.prefix))
        return self._last[1]
