"""Processes that sample and judge, one per GPU of this machine, each with the whole model."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.torch_backend import wire
from selfevo_jax.torch_backend.launch import WorkerError, end_process


class Samplers:
    """A pool of `count` processes, for a run's plain configuration."""

    def __init__(self, config: Mapping[str, Any], count: int) -> None:
        self.processes = [Sampler(config, number, count) for number in range(count)]

    @property
    def closed(self) -> bool:
        """Whether a process has ended: the pool is of no more use."""
        return any(one.process.poll() is not None for one in self.processes)

    def answers(self, what: str, policy: Policy, shards: Iterable[list]) -> Iterator[Any]:
        """See `Pool.answers`. Raises UserError for a mistake, WorkerError when a process ends."""
        free: queue.SimpleQueue[Sampler] = queue.SimpleQueue()
        for process in self.processes:
            free.put(process)

        def ask(shard: list) -> list:
            process = free.get()
            found = process.ask(wire.question(what, policy, shard))
            free.put(process)
            return found

        running: set[Future] = set()
        with ThreadPoolExecutor(len(self.processes)) as threads:
            try:
                for shard in shards:
                    running.add(threads.submit(ask, shard))
                    if len(running) == len(self.processes):
                        yield from _finished(running)
                while running:
                    yield from _finished(running)
            except BaseException:  # an interruption too: nobody waits for what is being computed
                self.close()
                raise

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.close()


def _finished(running: set[Future]) -> Iterator[Any]:
    """The answers of those that are done, at least one, which are taken out."""
    done = wait(running, return_when=FIRST_COMPLETED).done
    running -= done
    for future in done:
        yield from future.result()


class Sampler:
    """One of the processes. It ends with this one at the latest."""

    def __init__(self, config: Mapping[str, Any], number: int, count: int) -> None:
        self._log = tempfile.TemporaryFile()
        module = "selfevo_jax.torch_backend.sampler"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(number), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.close = weakref.finalize(self, end_process, self.process)
        self._say(json.dumps(config))

    def ask(self, question: str) -> list[Any]:
        """The answers to a `wire.question`."""
        self._say(question)
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")[-2000:]
            raise WorkerError(f"a process that samples ended with status {status}:\n{said}")
        if mistake := json.loads(line).get("mistake"):
            raise UserError(mistake)
        return wire.read_answer(line)

    def _say(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `ask` tells
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
