"""Requests shared out, in shards, to a pool of processes that each have the whole model.

An answer does not depend on what is computed beside it, so records are those of one process.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from selfevo_jax.evolve.policy import Policy
from selfevo_jax.sample.protocol import (
    Completion,
    LabelRequest,
    Labels,
    Request,
    Score,
    ScoreRequest,
)


class Pool(Protocol):
    """Processes that answer."""

    def answers(self, what: str, policy: Policy, shards: Iterable[list]) -> Iterator[Any]:
        """The answers to all requests, a shard at a time as they come back; `what` is a method of
        `Generator`."""
        ...


@dataclass(frozen=True)
class PoolGenerator:
    """`Generator` of one policy on a pool, which is asked for when the first request is there."""

    policy: Policy
    shard: int  # requests that are sent together
    pool: Callable[[], Pool]

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Generator.generate`."""
        return self._answers("generate", requests)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]:
        """See `Generator.score`."""
        return self._answers("score", requests)

    def labels(self, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        """See `Generator.labels`."""
        return self._answers("labels", requests)

    def _answers(self, what: str, requests: Iterable[Any]) -> Iterator[Any]:
        shards = shards_of(requests, self.shard)
        if (first := next(shards, None)) is not None:  # else no process need be started
            yield from self.pool().answers(what, self.policy, itertools.chain([first], shards))


def shards_of(requests: Iterable[Any], size: int) -> Iterator[list]:
    """Neighbours together, `size` at a time: those that share a prompt mostly follow each other."""
    rest = iter(requests)
    while shard := list(itertools.islice(rest, size)):
        yield shard
