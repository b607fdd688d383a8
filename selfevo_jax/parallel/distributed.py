"""Several hosts in one run: how they meet, agree and wait, and what happens when one is lost.

Every host runs the same program on the same workdir: one folder that all of them see, or a folder
on each, between which a `Carrier` goes. Host 0 alone decides and writes (`agreed`, `first`); what
it wrote is seen by all after the next `agreed`, and what the others wrote by host 0 after the next
`barrier`. Arrays that are spread over hosts are read by `on_host`.
Control goes through the coordination service that JAX starts on host 0, not through the chips, so
hosts may wait for each other while their chips do different things. With one host all of this is
free. JAX's own handle of that service is private; it is named in `_client` alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from selfevo_jax.errors import UserError
from selfevo_jax.parallel.cluster import Cluster
from selfevo_jax.parallel.preemption import Preempted, heard, noticed

T = TypeVar("T")
LOST = 75  # exit status of a host that lost another one (EX_TEMPFAIL: trying again may do)
SILENT_SECONDS = 30  # a host that is not heard of for so long is lost
LAST_WORDS_SECONDS = 3.0  # a host that leaves early waits so long for the others to read why
POLL_MS = 1000  # between two waits a signal is heard

_KEPT = "Everything finished is kept; start the same command on all hosts again"
_numbers = itertools.count()  # of the questions that all hosts ask in the same order


@contextlib.contextmanager
def joined(cluster: Cluster | None) -> Iterator[None]:
    """Within the block this process is one of the hosts of `cluster` (None: the only one).

    At the end all wait for all. When a host is lost, or leaves by an exception, the others print
    its name and exit with status `LOST` within a minute. Raises `UserError` when they do not meet.
    """
    if cluster is None:
        yield
        return
    _meet(cluster)
    watch = _Watch()
    try:
        yield
        watch.end()
    except Preempted as preempted:
        heard()
        if preempted.together:
            watch.end()
        else:
            watch.leave("was told to stop (SIGTERM)")
        raise
    except jax.errors.JaxRuntimeError:
        watch.verdict()  # most likely a collective that a lost host did not answer
        raise
    except BaseException as error:
        watch.leave(f"{type(error).__name__}: {error}".splitlines()[0])
        raise


def _meet(cluster: Cluster) -> None:
    jax.config.update("jax_enable_recoverability", True)  # a lost host is reported by `_Watch`
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM: see preemption.py
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**cluster.arguments(), heartbeat_timeout_seconds=SILENT_SECONDS)
    except (KeyError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(
            f"--cluster={cluster.where}: the hosts did not meet ({why}); start the same command "
            "on every host, and let them reach host 0"
        ) from error


class _Watch:
    """Ends this process when another host is gone, and tells the others when this one leaves."""

    def __init__(self) -> None:
        own = f"host {jax.process_index()} ({socket.gethostname()})"
        self._name, self._left = own, threading.Event()
        _tell(f"name/{jax.process_index()}", own)
        self._names = [_answer(f"name/{host}") for host in range(jax.process_count())]
        lost = "" if first() else f", or it lost {self._names[0]}, through which the hosts meet"
        self._farewell = _epitaph(f"{own} ended at once: it was killed{lost}. {_KEPT}")
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Waits for the others and parts with them; host 0, which serves the rest, goes last."""
        barrier()
        self._left.set()
        client, everyone = _client(), list(range(jax.process_count()))
        while first() and len(client.get_live_nodes(everyone)) > 1:
            time.sleep(0.1)
        self._say_farewell()
        jax.distributed.shutdown()

    def leave(self, why: str) -> None:
        """Tells the others why they are left, and gives them time to hear it."""
        self._left.set()
        self._say_farewell()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another host left first
            _tell("left", f"{self._name} left the run: {why}")
            time.sleep(LAST_WORDS_SECONDS)

    def verdict(self) -> None:
        """Waits until it is known whether a host was lost; does not return if one was."""
        self._thread.join(2 * SILENT_SECONDS)
        self.leave("an error in a computation")

    def _look(self) -> None:
        client, own, everyone = _client(), jax.process_index(), list(range(len(self._names)))
        while not self._left.wait(1.0):
            live = client.get_live_nodes(everyone)  # waits until all have asked, or are gone
            gone = [self._names[host] for host in everyone if host not in live and host != own]
            words = _asked("left")
            if self._left.is_set() or not (gone or words):
                continue
            if noticed() and self._left.wait(SILENT_SECONDS):
                return  # this host was told to stop as well, and ends by itself
            self._give_up(words or f"lost {', '.join(gone)}: nothing was heard from there any more")

    def _give_up(self, why: str) -> None:
        self._say_farewell()
        print(f"error: {why}. {_KEPT}", file=sys.stderr, flush=True)
        os._exit(LOST)

    def _say_farewell(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._farewell.communicate(b"\n")


def _epitaph(text: str) -> subprocess.Popen:
    """A process that prints `text` when this one ends without a word.

    When host 0 is gone, JAX aborts the others at once, from C++, and names no host.
    """
    script = 'read -r _ || printf "error: %s\\n" "$0" >&2'
    return subprocess.Popen(
        ["sh", "-c", script, text], stdin=subprocess.PIPE, start_new_session=True
    )


class Carrier(Protocol):
    """What brings files from host to host, where these share no folder. Lists are JSON values."""

    def sent(self) -> Any:
        """A list of what this host has changed since it was last asked."""
        ...

    def take(self, host: int, changes: Any) -> None:
        """Does here what `host` has sent."""
        ...

    def met(self) -> None:
        """All hosts have come to the same barrier, and so have taken what was sent before it."""
        ...


_carrier: Carrier | None = None


@contextlib.contextmanager
def carried_by(carrier: Carrier) -> Iterator[None]:
    """Within the block each host has a folder of its own, which `carrier` keeps like the others."""
    global _carrier
    _carrier = carrier
    try:
        yield
    finally:
        _carrier = None


def carried() -> bool:
    """Whether hosts share no folder."""
    return _carrier is not None


def first() -> bool:
    """Whether this is host 0, which alone writes."""
    return jax.process_index() == 0


def name_on(host: int | str, name: str) -> str:
    """A file's name for what each host writes for itself: `log.jsonl`, on host 3 `log-3.jsonl`."""
    stem, dot, ending = name.partition(".")
    return f"{stem}-{host}{dot}{ending}" if host else name


def own_name(name: str) -> str:
    """`name_on` this host."""
    return name_on(jax.process_index(), name)


def agreed(make: Callable[[], T]) -> T:
    """What `make` gives on host 0 (a JSON value), on every host; it is called on host 0 alone.

    All hosts then see what host 0 has written. A `UserError` is raised on every host.
    """
    if jax.process_count() == 1:
        return make()
    key = f"agreed/{next(_numbers)}"
    if first():
        try:
            answer = {"value": make(), "files": _carrier.sent() if _carrier else None}
        except UserError as error:
            answer = {"mistake": str(error)}
        _tell(key, json.dumps(answer))
    else:
        answer = json.loads(_answer(key))
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    if _carrier and not first():
        _carrier.take(0, answer["files"])
    return answer["value"]


def told_by_all(value: Any) -> list[Any]:
    """What every host says (JSON values), in the order of the hosts; on every host."""
    if jax.process_count() == 1:
        return [value]
    number = next(_numbers)
    _tell(f"said/{number}/{jax.process_index()}", json.dumps(value))
    hosts = range(jax.process_count())
    return [json.loads(_answer(f"said/{number}/{host}")) for host in hosts]


def barrier() -> None:
    """Waits until every host is here; host 0 then sees what the others have written."""
    sent = told_by_all(_carrier.sent() if _carrier and not first() else None)
    if _carrier:
        _carrier.met()
    for host, changes in enumerate(sent if _carrier and first() else ()):
        if host:
            _carrier.take(host, changes)


def one_after_another(make: Callable[[], T]) -> T:
    """What `make` gives on this host; host 0 does it before the others, whose caches may be its."""
    made = make() if first() else None
    barrier()
    return made if first() else make()


def spread(tree: Any) -> bool:
    """Whether a tree's arrays lie on several hosts, so that host 0 writes what all gather."""
    arrays = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return any(not array.is_fully_addressable for array in arrays)


def on_host(array: Any) -> np.ndarray:
    """An array as numpy; one that is spread over hosts is gathered, so that all must ask."""
    if spread(array) and not array.is_fully_replicated:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def from_first(array: np.ndarray) -> np.ndarray:
    """Host 0's array to the bit, on every host; all must ask with one of its shape and type."""
    bits = array.view(f"u{array.itemsize}")
    return multihost_utils.broadcast_one_to_all(bits).view(array.dtype)


class Together:
    """A step at which all hosts do what one of them wished, for loops that they run in step.

    A host may start the device's work of one step before it has seen the end of the step before,
    so hosts are at most one step apart when they ask, and a wish is granted two steps later.
    """

    def __init__(self) -> None:
        self._key = self._next_key()

    def granted(self, done: int, wish: bool) -> bool:
        """Whether to act after `done` steps: the same answer on every host."""
        if jax.process_count() == 1:
            return wish
        when = _asked(self._key)
        if when is None and wish:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another host wished first
                _tell(self._key, str(done + 2))
            when = _answer(self._key)
        if when is None or done < int(when):
            return False
        self._key = self._next_key()
        return True

    @staticmethod
    def _next_key() -> str:
        return f"together/{next(_numbers)}"


def _client() -> Any:
    from jax._src import distributed

    return distributed.global_state.client


def _tell(key: str, value: str) -> None:
    _client().key_value_set(f"selfevo/{key}", value)


def _asked(key: str) -> str | None:
    """The value of a key, None while nobody told it."""
    try:
        return _client().key_value_try_get(f"selfevo/{key}")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def _answer(key: str) -> str:
    """The value of a key, waited for."""
    while True:
        try:
            return _client().blocking_key_value_get(f"selfevo/{key}", POLL_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
