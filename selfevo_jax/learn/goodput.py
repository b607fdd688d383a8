"""Where the wall clock of a fit goes, and which host holds the others up.

    steps       useful work: steps, and waiting for the chips that do them
    compile     making programs, as JAX reports it, whatever asked for them
    data        packing a batch while the chips have nothing to do
    checkpoint  saving, as far as the fit waits for it
    reference   log-probs of frozen policies
    measure     the held-out examples
    idle        the rest: restoring, the first state, the last measurement

Every moment counts once. `goodput.jsonl` gets a line at every save and at the end, so what a
killed fit did after its last save is not in it. The last line has the step times of all hosts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from selfevo_jax.parallel.distributed import told_by_all

log = logging.getLogger(__name__)

FILE = "goodput.jsonl"
PARTS = ("steps", "compile", "data", "checkpoint", "reference", "measure", "idle")
TOLD = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS")
_COMPILING = {
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
}
_HELD_UP = 0.1  # share of a step: a host whose own work takes so much more than others' is named


class Goodput:
    """The clock of one start of a fit, which began at `since` (of `time.monotonic`) and goes on
    after `done` steps. A context: within it the compiler is watched. Only the process that
    `writes` has a file."""

    def __init__(self, folder: Path, done: int, since: float, *, writes: bool = True) -> None:
        self._path = folder / FILE if writes else None
        self._done = self._from = done
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._doing, self._since = "idle", since
        self._step_began, self._waited = self._since, 0.0
        self._times: list[tuple[float, float]] = []
        self._hosts: dict[str, Any] = {}

    def __enter__(self) -> Goodput:
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._compiled)
        self.write(**self._hosts)

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Within the block time goes to `part`, but for what blocks inside it take."""
        before = self._turn_to(part)
        try:
            yield
        finally:
            self._turn_to(before)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block this host waits for the chips, which wait for all hosts."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    def begin_steps(self) -> None:
        """The next step's time starts here."""
        self._step_began, self._waited = time.monotonic(), 0.0

    def step(self) -> float:
        """One more step is known to be done; the seconds since the one before."""
        now = time.monotonic()
        seconds = now - self._step_began
        self._times.append((seconds, seconds - self._waited))
        self._done, self._step_began, self._waited = self._done + 1, now, 0.0
        return seconds

    def write(self, **more: Any) -> None:
        """Appends a line for the time since the last one."""
        self._turn_to(self._doing)
        line = {"first": self._from, "last": self._done}
        line |= {part: round(seconds, 3) for part, seconds in self._spent.items()} | more
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._from, self._spent = self._done, dict.fromkeys(PARTS, 0.0)

    def compare_hosts(self) -> None:
        """Keeps every host's step times for the last line, and names those that hold the others up.
        All hosts must come here."""
        hosts = told_by_all(step_times(self._times[1:]) | {"name": socket.gethostname()})
        if len(hosts) == 1:
            return
        self._hosts = {"hosts": hosts}
        for number in stragglers(hosts):
            host = hosts[number]
            log.warning(
                "host %d (%s) holds the others up: of a step's %.3f s it works %.3f s itself",
                number, host["name"], host["median"], host["own"],
            )  # fmt: skip

    def _turn_to(self, part: str) -> str:
        now, before = time.monotonic(), self._doing
        self._spent[before] += now - self._since
        self._doing, self._since = part, now
        return before

    def _compiled(self, event: str, seconds: float, **_: Any) -> None:
        if event in _COMPILING:
            self._spent[self._doing] -= seconds
            self._spent["compile"] += seconds


def machine(mesh: Mesh, kinds: Sequence[str]) -> dict[str, Any]:
    """What the steps of a fit run on, devices of these kinds, and what changes how JAX uses it."""
    told = {name: os.environ[name] for name in TOLD if name in os.environ}
    return {
        "os": platform.platform(),
        "device": kinds[0],
        "devices": len(kinds),
        "hosts": jax.process_count(),
        "mesh": dict(mesh.shape),
        **told,
    }


def computing(sums: Mapping[str, Any] | None) -> bool:
    """Whether the chips still work on the sums of a step (None: there is none)."""
    arrays = [value for value in (sums or {}).values() if isinstance(value, jax.Array)]
    return not all(array.is_ready() for array in arrays)


def step_times(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """`median` and `slowest` seconds of steps, and the median seconds of a host's `own` work in
    one, from (seconds, own) of each step but the first, which compiles."""
    if not times:
        return {"median": 0.0, "slowest": 0.0, "own": 0.0}
    steps, own = zip(*times, strict=True)
    return {
        "median": statistics.median(steps),
        "slowest": max(steps),
        "own": statistics.median(own),
    }


def stragglers(hosts: Sequence[Mapping[str, float]]) -> list[int]:
    """The numbers of the hosts whose own work in a step is longer than that of most by a tenth of
    the step. Chips wait for each other, so the steps of all are as long as those of the slowest."""
    usual = statistics.median_low(host["own"] for host in hosts)
    return [
        i for i, host in enumerate(hosts) if host["own"] - usual > _HELD_UP * host["median"] > 0
    ]
