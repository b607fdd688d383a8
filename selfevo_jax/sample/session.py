"""One call of `generate`: which request sits in which decoding row, from first to last."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from selfevo_jax.sample.beams import search
from selfevo_jax.sample.device import Out
from selfevo_jax.sample.memory import Memory, idle_rows
from selfevo_jax.sample.protocol import MAX_STOP_TOKENS, Completion, Request
from selfevo_jax.sample.queue import Job, Kind, Queue
from selfevo_jax.sample.stops import cut_at_stop
from selfevo_jax.text.tokenizer import Tokenizer


@dataclass
class Answer:
    """What a decoding row has produced for its job so far."""

    job: Job
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def add(self, out: Out, row: int) -> int:
        """Takes in what row `row` chose; how many tokens."""
        fresh = int((out.tokens_bn[row] >= 0).sum())
        self.tokens += out.tokens_bn[row, :fresh].tolist()
        self.logps += out.logps_bn[row, :fresh].tolist()
        if out.around is not None:
            count = self.job.request.sampling.top_logprobs
            ids, logps = out.around.top_bk[row, :fresh], out.around.logps_bk[row, :fresh]
            pairs = zip(ids[:, :count].tolist(), logps[:, :count].tolist(), strict=True)
            self.top += [tuple(zip(*pair, strict=True)) for pair in pairs]
            self.entropies += out.around.entropy_b[row, :fresh].tolist()
            self.margins += out.around.margin_b[row, :fresh].tolist()
        return fresh

    def completion(self, text: str, kept: int, finish: str) -> Completion:
        """The answer, of which the first `kept` tokens count."""
        request = self.job.request
        details = request.sampling.details
        return Completion(
            request.id, text, tuple(self.tokens[:kept]), tuple(self.logps[:kept]), finish,
            len(self.job.prompt.tokens),
            top_logprobs=tuple(self.top[:kept]) if request.sampling.top_logprobs else None,
            entropies=tuple(self.entropies[:kept]) if details else None,
            margins=tuple(self.margins[:kept]) if details else None,
        )  # fmt: skip


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
        vocab: int,
        cancelled: Callable[[Request], bool],
    ) -> None:
        self._memory, self._queue, self._tokenizer = memory, queue, tokenizer
        self._prompts, self._steps, self._cancelled = prompts, steps, cancelled
        self._slots, self._vocab = slots, vocab
        self._answers: list[Answer | None] = [None] * slots
        self._rows = idle_rows(slots)
        self._seen_bv: np.ndarray | None = None  # tokens of prompt and answer, where penalised
        self._ready: deque[tuple[int, Job]] = deque()  # (prompt row, job), read and waiting

    def run(self) -> Iterator[list[Progress]]:
        """What every call of the device brought, until no request is left."""
        while (kind := self._queue.next_kind()) is not None:
            self._memory.set_length(kind.length)
            if kind.beams > 1:
                yield from self._search(kind)
                continue
            self._seen_bv = np.zeros((self._slots, self._vocab), bool) if kind.penalised else None
            while self._fill(kind):
                yield self._decode(kind)

    def _search(self, kind: Kind) -> Iterator[list[Progress]]:
        """Beam searches of one kind, `slots // beams` prompts at a time."""
        while groups := self._queue.take(min(self._prompts, self._slots // kind.beams), kind):
            found = search(
                self._memory, self._tokenizer, groups, kind, self._slots, self._cancelled
            )
            for job, completion in found:
                yield [Progress(job.request, completion.tokens, completion)]

    def _fill(self, kind: Kind) -> bool:
        """Gives every free row a job; whether any row has one."""
        free = deque(row for row, answer in enumerate(self._answers) if answer is None)
        while free and (self._ready or self._read_prompts(kind)):
            count = min(len(free), len(self._ready))
            taken = [(free.popleft(), *self._ready.popleft()) for _ in range(count)]
            self._memory.place([row for row, _, _ in taken], [prompt for _, prompt, _ in taken])
            for row, _, job in taken:
                self._start(row, job)
        return any(answer is not None for answer in self._answers)

    def _read_prompts(self, kind: Kind) -> bool:
        """Reads the next prompts of the queue together; whether there were any."""
        groups = self._queue.take(self._prompts, kind)
        rows = self._memory.read([group.prompt for group in groups])
        self._ready.extend(
            (row, job) for row, group in zip(rows, groups, strict=True) for job in group.jobs
        )
        return bool(groups)

    def _start(self, row: int, job: Job) -> None:
        rows, sampling, seed = self._rows, job.request.sampling, job.request.seed % 2**64
        prompt = job.prompt.tokens
        self._answers[row] = Answer(job)
        rows.token_b[row], rows.position_b[row] = prompt[-1], len(prompt) - 1
        rows.count_b[row], rows.limit_b[row], rows.live_b[row] = 0, job.limit, True
        rows.stops_be[row] = (*job.stops, *(-1,) * (MAX_STOP_TOKENS - len(job.stops)))
        rows.seeds_b2[row] = seed >> 32, seed % 2**32
        rows.rules.temperature_b[row] = sampling.temperature
        rows.rules.top_k_b[row] = min(sampling.top_k, 2**31 - 1)
        rows.rules.top_p_b[row], rows.rules.min_p_b[row] = sampling.top_p, sampling.min_p
        rows.penalty_b[row], rows.adapter_b[row] = sampling.repetition_penalty, job.prompt.adapter
        if self._seen_bv is not None:
            self._seen_bv[row] = False
            self._seen_bv[row, list(prompt)] = True

    def _decode(self, kind: Kind) -> list[Progress]:
        """One call for all rows; a row whose answer ended or was cancelled is free again."""
        out, live_b = self._memory.decode(self._rows, self._seen_bv, self._steps, kind.top)
        news = []
        for row, answer in enumerate(self._answers):
            if answer is None:
                continue
            request = answer.job.request
            if self._cancelled(request):
                self._free(row)
                continue
            fresh = answer.add(out, row)
            completion = self._finished(answer, fresh, bool(live_b[row]))
            news.append(Progress(request, tuple(answer.tokens[-fresh:]), completion))
            if completion is None:
                self._go_on(row, answer, fresh)
            else:
                self._free(row)
        return news

    def _free(self, row: int) -> None:
        self._answers[row] = None
        self._rows.live_b[row] = False

    def _go_on(self, row: int, answer: Answer, fresh: int) -> None:
        self._rows.token_b[row] = answer.tokens[-1]
        self._rows.count_b[row] = len(answer.tokens)
        self._rows.position_b[row] = len(answer.job.prompt.tokens) - 1 + len(answer.tokens)
        if self._seen_bv is not None:
            self._seen_bv[row, answer.tokens[-fresh:]] = True

    def _finished(self, answer: Answer, fresh: int, live: bool) -> Completion | None:
        """The completion, if the last `fresh` tokens ended it."""
        tokens = answer.tokens
        cut = cut_at_stop(self._tokenizer, tokens, fresh, answer.job.request.sampling.stop)
        if cut is None and live:
            return None
        by_token = tokens[-1] in answer.job.stops
        text, kept = cut or (self._tokenizer.decode(tokens), len(tokens))
        return answer.completion(text, kept, "stop" if cut is not None or by_token else "length")
