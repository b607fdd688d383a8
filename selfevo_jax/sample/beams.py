"""Beam search: the likeliest answer that keeping the `num_beams` best beginnings finds.

The rules are those of `transformers` with its defaults, so that published numbers can be met:
every step takes the best continuations of all beams; those among the best `num_beams` that end
are finished and scored by log-probability / length ** length_penalty; a search is over when
`num_beams` are finished and the best running beam, scored at its present length, is no better
than the worst of them, or at the length limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from selfevo_jax.sample.device import Rows
from selfevo_jax.sample.memory import Memory, idle_rows
from selfevo_jax.sample.protocol import Completion, Request
from selfevo_jax.sample.queue import Group, Job, Kind
from selfevo_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Beam:
    """A beginning of the answer; `row` holds all but its last token."""

    row: int
    tokens: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """Its log-probability."""
        return sum(self.logps)


@dataclass
class Search:
    """The search for one job in `rows`, one a beam.

    `copies` (row, source) have to be made before the rows of `running` hold what they should.
    """

    job: Job
    rows: range
    running: list[Beam]
    copies: list[tuple[int, int]] = field(default_factory=list)
    finished: list[tuple[float, Beam]] = field(default_factory=list)

    def step(self, tokens_bk: np.ndarray, logps_bk: np.ndarray) -> bool:
        """Takes in the likeliest next tokens of all rows; whether the search goes on."""
        sampling, beams = self.job.request.sampling, self.job.request.sampling.num_beams
        continued = [
            Beam(beam.row, (*beam.tokens, token), (*beam.logps, logp))
            for beam in self.running
            for token, logp in zip(
                tokens_bk[beam.row].tolist(), logps_bk[beam.row].tolist(), strict=True
            )
        ]
        continued.sort(key=lambda beam: -beam.total)
        best = continued[: tokens_bk.shape[1]]
        length = len(best[0].tokens)
        weight = length**sampling.length_penalty
        self.finished += [(b.total / weight, b) for b in best[:beams] if self._ended(b)]
        self.finished = sorted(self.finished, key=lambda scored: -scored[0])[:beams]
        self._seat([beam for beam in best if not self._ended(beam)][:beams])
        if not self.running:
            return False
        full = len(self.finished) == beams
        return not full or self.running[0].total / weight > self.finished[-1][0]

    def _seat(self, chosen: Sequence[Beam]) -> None:
        """A row of its own for each beam: the best that comes from a row stays there, the others
        move to rows from which none goes on."""
        free = iter(sorted({*self.rows} - {beam.row for beam in chosen}))
        self.running, self.copies = [], []
        for beam in chosen:
            if any(beam.row == other.row for other in self.running):
                self.copies.append((next(free), beam.row))
                beam = replace(beam, row=self.copies[-1][0])
            self.running.append(beam)

    def completion(self, tokenizer: Tokenizer) -> Completion:
        """The best finished answer."""
        beam = self.finished[0][1]
        text = tokenizer.decode(beam.tokens)
        finish = "stop" if beam.tokens[-1] in self.job.stops else "length"
        prompt = len(self.job.prompt.tokens)
        return Completion(self.job.request.id, text, beam.tokens, beam.logps, finish, prompt)

    def _ended(self, beam: Beam) -> bool:
        return beam.tokens[-1] in self.job.stops or len(beam.tokens) == self.job.limit


def search(
    memory: Memory,
    tokenizer: Tokenizer,
    groups: Sequence[Group],
    kind: Kind,
    slots: int,
    cancelled: Callable[[Request], bool],
) -> Iterator[tuple[Job, Completion]]:
    """Every job's answer as it is found; a cancelled job gets none. Memory is at `kind.length`."""
    rows_read = memory.read([group.prompt for group in groups])
    waiting = deque(
        (row, job) for row, group in zip(rows_read, groups, strict=True) for job in group.jobs
    )
    places: list[Search | None] = [None] * (slots // kind.beams)
    while waiting or any(places):
        for index, place in enumerate(places):
            if place is None and waiting:
                row, job = waiting.popleft()
                rows = range(index * kind.beams, (index + 1) * kind.beams)
                memory.place([rows[0]], [row])
                places[index] = Search(job, rows, [Beam(rows[0])])
        searches = [place for place in places if place is not None]
        copies = [copy for one in searches for copy in one.copies]
        found = memory.expand(_next_tokens(searches, slots), copies, kind.top)
        for index, place in enumerate(places):
            if place is None:
                continue
            if cancelled(place.job.request):
                places[index] = None
            elif not place.step(*found):
                places[index] = None
                yield place.job, place.completion(tokenizer)


def _next_tokens(searches: Sequence[Search], slots: int) -> Rows:
    """What every row reads next."""
    rows = idle_rows(slots)
    for search in searches:
        prompt = search.job.prompt
        for beam in search.running:
            rows.token_b[beam.row] = beam.tokens[-1] if beam.tokens else prompt.tokens[-1]
            rows.position_b[beam.row] = len(prompt.tokens) - 1 + len(beam.tokens)
            rows.live_b[beam.row], rows.adapter_b[beam.row] = True, prompt.adapter
    return rows
