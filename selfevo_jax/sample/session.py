"""One call of `generate`: which request sits in which decoding row, from first to last."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from selfevo_jax.sample.device import Rows
from selfevo_jax.sample.memory import Memory
from selfevo_jax.sample.protocol import MAX_STOP_TOKENS, Completion, Request
from selfevo_jax.sample.queue import Job, Queue
from selfevo_jax.sample.select import Rules
from selfevo_jax.sample.stops import cut_at_stop
from selfevo_jax.text.tokenizer import Tokenizer


@dataclass
class Answer:
    """What a decoding row has produced for its job so far."""

    job: Job
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """What one call of the device brought a request: its newest tokens, or the whole answer."""

    request: Request
    fresh: tuple[int, ...]
    completion: Completion | None


class Session:
    """Continuous batching: a row whose answer ends is given the next job before the next call."""

    def __init__(
        self,
        memory: Memory,
        queue: Queue,
        tokenizer: Tokenizer,
        *,
        slots: int,
        prompts: int,
        steps: int,
        cancelled: Callable[[Request], bool],
    ) -> None:
        self._memory, self._queue, self._tokenizer = memory, queue, tokenizer
        self._prompts, self._steps, self._cancelled = prompts, steps, cancelled
        self._answers: list[Answer | None] = [None] * slots
        self._rows = _idle_rows(slots)
        self._ready: deque[tuple[int, Job]] = deque()  # (prompt row, job), read and waiting

    def run(self) -> Iterator[list[Progress]]:
        """What every call of the device brought, until no request is left."""
        while (length := self._queue.next_length()) is not None:
            self._memory.set_length(length)
            while self._fill(length):
                yield self._decode()

    def _fill(self, length: int) -> bool:
        """Gives every free row a job; whether any row has one."""
        free = deque(row for row, answer in enumerate(self._answers) if answer is None)
        while free and (self._ready or self._read_prompts(length)):
            count = min(len(free), len(self._ready))
            taken = [(free.popleft(), *self._ready.popleft()) for _ in range(count)]
            self._memory.place([row for row, _, _ in taken], [prompt for _, prompt, _ in taken])
            for row, _, job in taken:
                self._start(row, job)
        return any(answer is not None for answer in self._answers)

    def _read_prompts(self, length: int) -> bool:
        """Reads the next prompts of the queue together; whether there were any."""
        groups = self._queue.take(self._prompts, length)
        if groups:
            self._memory.read([group.prompt for group in groups])
        self._ready.extend((row, job) for row, group in enumerate(groups) for job in group.jobs)
        return bool(groups)

    def _start(self, row: int, job: Job) -> None:
        rows, sampling, seed = self._rows, job.request.sampling, job.request.seed % 2**64
        self._answers[row] = Answer(job)
        rows.token_b[row], rows.position_b[row] = job.prompt[-1], len(job.prompt) - 1
        rows.count_b[row], rows.limit_b[row], rows.live_b[row] = 0, job.limit, True
        rows.stops_be[row] = (*job.stops, *(-1,) * (MAX_STOP_TOKENS - len(job.stops)))
        rows.seeds_b2[row] = seed >> 32, seed % 2**32
        rows.rules.temperature_b[row] = sampling.temperature
        rows.rules.top_k_b[row] = min(sampling.top_k, 2**31 - 1)
        rows.rules.top_p_b[row], rows.rules.min_p_b[row] = sampling.top_p, sampling.min_p

    def _decode(self) -> list[Progress]:
        """One call for all rows; a row whose answer ended or was cancelled is free again."""
        tokens_bn, logps_bn, live_b = self._memory.decode(self._rows, self._steps)
        news = []
        for row, answer in enumerate(self._answers):
            if answer is None:
                continue
            request = answer.job.request
            if self._cancelled(request):
                self._free(row)
                continue
            fresh = int((tokens_bn[row] >= 0).sum())
            answer.tokens += tokens_bn[row, :fresh].tolist()
            answer.logps += logps_bn[row, :fresh].tolist()
            completion = self._finished(answer, fresh, bool(live_b[row]))
            news.append(Progress(request, tuple(answer.tokens[-fresh:]), completion))
            if completion is None:
                self._go_on(row, answer)
            else:
                self._free(row)
        return news

    def _free(self, row: int) -> None:
        self._answers[row] = None
        self._rows.live_b[row] = False

    def _go_on(self, row: int, answer: Answer) -> None:
        self._rows.token_b[row] = answer.tokens[-1]
        self._rows.count_b[row] = len(answer.tokens)
        self._rows.position_b[row] = len(answer.job.prompt) - 1 + len(answer.tokens)

    def _finished(self, answer: Answer, fresh: int, live: bool) -> Completion | None:
        """The completion, if the last `fresh` tokens ended it."""
        job, tokens = answer.job, answer.tokens
        cut = cut_at_stop(self._tokenizer, tokens, fresh, job.request.sampling.stop)
        if cut is None and live:
            return None
        by_token = tokens[-1] in job.stops
        text, kept = cut or (self._tokenizer.decode(tokens), len(tokens))
        finish = "stop" if cut is not None or by_token else "length"
        return Completion(
            job.request.id,
            text,
            tuple(tokens[:kept]),
            tuple(answer.logps[:kept]),
            finish,
            len(job.prompt),
        )


def _idle_rows(slots: int) -> Rows:
    """Rows of which none is live, as numpy arrays."""
    token_b, position_b, count_b, limit_b, top_k_b = np.zeros((5, slots), np.int32)
    temperature_b, top_p_b = np.ones((2, slots), np.float32)
    rules = Rules(temperature_b, top_k_b, top_p_b, np.zeros(slots, np.float32))
    stops_be = np.full((slots, MAX_STOP_TOKENS), -1, np.int32)
    seeds_b2 = np.zeros((slots, 2), np.uint32)
    live_b = np.zeros(slots, bool)
    return Rows(token_b, position_b, count_b, limit_b, live_b, stops_be, seeds_b2, rules)
