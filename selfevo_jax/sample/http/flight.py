"""Jobs in threads, a few at a time: one that fails does not take others with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.failures import CallFailed, RequestsFailed

T = TypeVar("T")
R = TypeVar("R")


class Flight(Generic[T, R]):
    """One pass over a job. `stop` is set when nothing more should be sent or repeated."""

    def __init__(self, concurrency: int, act: Callable[[T, threading.Event], R]) -> None:
        self.stop = threading.Event()
        self._concurrency, self._act = concurrency, act
        self._fatal: UserError | None = None

    def run(self, tasks: Iterable[T]) -> Iterator[tuple[T, R | CallFailed]]:
        """(task, result or failure) as they come. `tasks` is read only as far as threads are free.

        An error that ends the whole job is raised when what was under way is through.
        """
        source = iter(tasks)
        flying: dict[Future[R], T] = {}
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                while self._start(pool, source, flying):
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        yield flying.pop(future), self._result(future)
            finally:
                self.stop.set()
        if self._fatal is not None:
            raise self._fatal

    def _start(self, pool: ThreadPoolExecutor, source: Iterator[T], flying: dict) -> bool:
        """Fills the free threads; whether anything is under way."""
        while self._fatal is None and len(flying) < self._concurrency:
            task = next(source, None)
            if task is None:
                break
            flying[pool.submit(self._act, task, self.stop)] = task
        return bool(flying)

    def _result(self, future: Future[R]) -> R | CallFailed:
        try:
            return future.result()
        except CallFailed as failure:
            return failure
        except UserError as error:
            self._fatal = self._fatal or error
            self.stop.set()
            return CallFailed(str(error))


def check(failed: dict[str, str], where: str) -> None:
    """Raises `RequestsFailed` unless `failed` (id -> reason) is empty."""
    if failed:
        raise RequestsFailed(failed, where)
