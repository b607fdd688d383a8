"""Batches made on another thread while the chips are busy, by grain."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain

Batch = TypeVar("Batch")

_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


@contextlib.contextmanager
def prefetched(batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Iterator[Batch]]:
    """Within the block, an iterator over `batch(step)` for the steps from `start` to before `stop`,
    up to two steps ahead of its reader. What `batch` raises is raised where its step is read.

    A batch follows from its step alone: an iterator has no state to save, and goes on at any step
    on any number of hosts.
    """
    steps = grain.MapDataset.range(start, stop)
    with contextlib.closing(iter(steps.map(batch).to_iter_dataset(_READ))) as batches:
        yield batches
