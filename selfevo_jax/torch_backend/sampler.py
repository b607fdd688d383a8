"""One process of a pool: `python -m selfevo_jax.torch_backend.sampler NUMBER COUNT`, by `pool.py`.

It reads the run's configuration, and then questions (`wire.py`), a line each, and writes a line for
each of them. It ends with its standard input, whatever it is doing.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

import torch
from ml_collections import ConfigDict, FrozenConfigDict

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.torch_backend import wire
from selfevo_jax.torch_backend.backend import TorchBackend
from selfevo_jax.torch_backend.group import ALONE


def main(number: int, count: int) -> None:
    """Answers until the pool ends it."""
    out, lines = own_output(), given_lines()
    take_place(number, count)
    config = FrozenConfigDict(ConfigDict(json.loads(next(lines))))
    backend = TorchBackend(config, Progress(quiet=True), group=ALONE)
    for line in lines:
        print(answered(backend, line), file=out, flush=True)


def own_output() -> TextIO:
    """Standard output for answers alone; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def given_lines() -> Iterator[str]:
    """The lines of standard input. When it ends, so does this process."""
    given: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            given.put(line)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield given.get()


def take_place(number: int, count: int) -> None:
    """The GPU of this process, or its share of the processor's cores."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))


def answered(backend: TorchBackend, line: str) -> str:
    """The answer to a question, or the mistake in it."""
    what, policy, requests = wire.read_question(line)
    try:
        return wire.answer(what, getattr(backend.generator(policy), what)(requests))
    except UserError as mistake:
        return json.dumps({"mistake": str(mistake)})


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
