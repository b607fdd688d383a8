"""The requests still waiting, grouped by prompt; read from their iterable only as needed.

Jobs are decoded together only with jobs of the same `Kind`, which follows from the request
alone: another compiled program (sums over a longer cache, say) rounds differently, and an answer
must not depend on its neighbours. Lengths are few (powers of two), so most runs have one kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from selfevo_jax.errors import UserError
from selfevo_jax.sample.prompts import Passage
from selfevo_jax.sample.protocol import MAX_STOP_TOKENS, MAX_TOP_LOGPROBS, Request
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import Tokenizer

LEAST_CANDIDATES = 32
A = TypeVar("A")


class Kind(NamedTuple):
    """How a job must be decoded: cache length, beams (1: sampling), whether repetition is
    penalised, and how many of the likeliest tokens are looked at in every place (0: none)."""

    length: int
    beams: int = 1
    penalised: bool = False
    top: int = 0


@dataclass(frozen=True)
class Job:
    """A request ready to run: its prompt, how many more tokens fit, what ends it, its kind."""

    request: Request
    prompt: Passage
    limit: int
    stops: tuple[int, ...]
    kind: Kind


@dataclass
class Group:
    """All waiting jobs of one prompt (and kind), which is read once for all of them."""

    kind: Kind
    prompt: Passage
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
        adapters: Mapping[str | None, int],
        slots: int,
        max_length: int,
        window: int,
    ) -> None:
        self._source: Iterator[Request] = iter(requests)
        self._tokenizer, self._max_length, self._window = tokenizer, max_length, window
        self._lengths, self._adapters, self._slots = lengths, adapters, slots
        self._groups: dict[tuple[Kind, Passage], Group] = {}
        self._waiting = 0
        self._passed = 0  # jobs taken before the one that waits longest
        self._last: tuple[tuple[object, str], list[int]] | None = None

    def next_kind(self) -> Kind | None:
        """The kind of the job that waits longest; None when no job is left."""
        if not self._groups:
            self._read()
        return next((group.kind for group in self._groups.values()), None)

    def take(self, count: int, kind: Kind) -> list[Group]:
        """Up to `count` prompts of this kind with their jobs, as the window has them.

        Nothing when the job that waits longest has another kind and `window` jobs were taken
        before it: its turn comes when what is being decoded is through.
        """
        oldest = next(iter(self._groups.values()), None)
        if oldest is not None and oldest.kind != kind and self._passed >= self._window:
            return []
        while self._count(kind) < count and self._waiting < self._window and self._read():
            pass
        self._read_same_prompts()
        keys = [key for key in self._groups if key[0] == kind][:count]
        taken = [self._groups.pop(key) for key in keys]
        count = sum(len(group.jobs) for group in taken)
        self._waiting -= count
        first = next(iter(self._groups.values()), None)
        self._passed = self._passed + count if first is oldest and oldest is not None else 0
        return taken

    def _count(self, kind: Kind) -> int:
        return sum(group.kind == kind for group in self._groups.values())

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
        empty = Group(job.kind, job.prompt, deque())
        self._groups.setdefault((job.kind, job.prompt), empty).jobs.append(job)
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
        passage = Passage(prompt, adapter_number(self._adapters, request.id, request.adapter))
        return Job(
            request, passage, limit, stops, self._kind(request, len(prompt) + limit, len(stops))
        )

    def _kind(self, request: Request, tokens: int, stops: int) -> Kind:
        sampling = request.sampling
        if sampling.num_beams > self._slots:
            raise UserError(
                f"request {request.id}: {sampling.num_beams} beams do not fit into the engine's "
                f"{self._slots} slots; give it more"
            )
        beams = sampling.num_beams
        looked = MAX_TOP_LOGPROBS if sampling.top_logprobs or sampling.details else 0
        return Kind(
            next(size for size in self._lengths if size >= tokens),
            beams,
            sampling.repetition_penalty != 1,
            _candidates(beams, stops) if beams > 1 else looked,
        )

    def _render(self, request: Request) -> list[int]:
        """The prompt's tokens; samples of one prompt usually follow each other."""
        if request.tokens is not None:
            return list(request.tokens)
        key = (request.messages, request.prefix)
        if self._last is None or self._last[0] != key:
            self._last = (key, render_prompt(self._tokenizer, request.messages, request.prefix))
        return self._last[1]


def _candidates(beams: int, stops: int) -> int:
    """How many next tokens a search looks at: as many beams go on when all that can end do.

    A power of two, so that few programs serve all searches.
    """
    return max(LEAST_CANDIDATES, 1 << (beams * (1 + stops) - 1).bit_length())


def numbered(
    adapter: A | None, adapters: Mapping[str, A] | None
) -> tuple[list[A], dict[str | None, int]]:
    """An engine's adapters in the order of their numbers, and the number for each name.

    None stands for `adapter`, or, without one, for the base (-1).
    """
    named = ({} if adapter is None else {None: adapter}) | dict(adapters or {})
    return list(named.values()), {None: -1} | {name: i for i, name in enumerate(named)}


def adapter_number(adapters: Mapping[str | None, int], id: str, name: str | None) -> int:
    """The number of the adapter that request `id` asks for. Raises `UserError` for others."""
    if name not in adapters:
        known = ", ".join(sorted(name for name in adapters if name is not None)) or "none"
        raise UserError(f"request {id}: there is no adapter {name!r}; the engine has: {known}")
    return adapters[name]
