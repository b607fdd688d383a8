"""`Sandbox`: runs a program against its tests, each in a cage of its own."""

import contextlib
import dataclasses
import functools
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from selfevo_jax.errors import UserError
from selfevo_jax.judge.sandbox.cage import Cage, listen, start_cage
from selfevo_jax.judge.sandbox.outcome import Enforced, Limits, Outcome

PROBE_SECONDS = 20.0
REMEDY = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces,"
    " kernel.apparmor_restrict_unprivileged_userns=0; in a container, a seccomp profile that lets"
    " unshare and mount pass), or run as root with CAP_SYS_ADMIN, or leave out tasks that run code"
)


class Sandbox:
    """Runs programs that nobody has read. Making one raises `UserError` where that is not safe.

    Safe means: no network and no sight of the host's files, as tried from inside a cage. There is
    no weaker mode to fall back to. `enforced` says what else holds on this platform.
    Calls from several threads at once are fine; nothing is kept between calls.
    """

    def __init__(self, limits: Limits | None = None):
        self.limits = limits or Limits()
        self.enforced = platform()

    def run_tests(
        self,
        code: str,
        tests: Sequence[str],
        setup: str = "",
        entry_point: str | Sequence[str] | None = None,
    ) -> Outcome:
        """Runs each of `tests` (Python statements) against the program `code`.

        The program is loaded in one cage, `setup` and the tests run in another. The tests reach
        the names in `entry_point`, or without it every name that they read and do not define, in
        the program: calls, attributes, iteration, length and items work across, data are copied,
        arguments that the program changed are changed in the tests too. Comparing objects of
        the program's own classes, and passing it functions, is `unsupported`.
        """
        if not tests:
            raise UserError("the sandbox was given no tests: without one every program would pass")
        began = time.monotonic()
        names = [entry_point] if isinstance(entry_point, str) else entry_point
        most = self.limits.source_bytes
        texts = {"program": len(code), "tests": len(setup) + sum(map(len, tests))}
        if too_long := [name for name, length in texts.items() if length > most]:
            return Outcome("refused", f"the {too_long[0]} is longer than {most} characters")
        nonce = secrets.token_hex(16)
        program = {"role": "program", "code": code}
        testing = {"role": "tests", "tests": list(tests), "setup": setup, "nonce": nonce,
                   "names": None if names is None else list(names)}  # fmt: skip
        try:
            with _pair(program, testing, self.limits) as (tested, tester):
                finished = _listen_to_verdict(tested, tester, began + self.limits.wall_seconds)
        except OSError as error:
            return Outcome("refused", f"no process could be started: {error}")
        seconds = time.monotonic() - began
        outcome = _outcome(tested.lines, tester.lines, nonce, finished)
        return dataclasses.replace(outcome, seconds=seconds)


@contextlib.contextmanager
def _pair(program: dict, testing: dict, limits: Limits) -> Iterator[list[Cage]]:
    """Two cages joined by a socket; both are gone when the block ends."""
    common = {"limits": dataclasses.asdict(limits), "message_bytes": limits.message_bytes}
    ends = socket.socketpair()
    with contextlib.ExitStack() as stack:
        cages = []
        for job, end in zip((program, testing), ends, strict=True):
            with end:
                cages.append(start_cage({**job, **common}, end.fileno()))
            stack.callback(cages[-1].end)
        yield cages


def _listen_to_verdict(tested: Cage, tester: Cage, deadline: float) -> bool:
    """Waits for the verdict; if that is about the program's death, for word of that too."""
    if not listen((tested, tester), tester, deadline):
        return False
    return tester.lines.get("outcome") != "gone" or listen((tested,), tested, deadline)


def _outcome(tested: dict, tester: dict, nonce: str, finished: bool) -> Outcome:
    refused = [lines for lines in (tested, tester) if "refused" in lines]
    if refused:
        step, error = refused[0]["refused"], os.strerror(refused[0]["error"])
        return Outcome("refused", f"no cage could be built: {step}: {error}")
    verdict = tester.get("outcome") if tester.get("nonce") == nonce else None
    if not finished and verdict is None:
        return Outcome("timeout", "the wall-clock limit")
    if verdict is None:
        return _death("the tests' process", tester)
    if verdict == "gone":
        return _death("the program's process", tested, str(tester["message"]))
    return Outcome(verdict, str(tester["message"]))


def _death(whose: str, lines: dict, message: str = "") -> Outcome:
    """What the end of a process that gave no answer means."""
    status = lines.get("status")
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return Outcome("timeout", f"{whose} met the processor-time limit")
        return Outcome("crashed", f"{whose} was ended by {signal.Signals(number).name}")
    code = (
        "without a word" if status is None else f"with status {os.waitstatus_to_exitcode(status)}"
    )
    return Outcome("crashed", f"{whose} ended {code}" + (f": {message}" if message else ""))


# ---- what the platform can do


@functools.cache
def platform() -> Enforced:
    """Tries a cage out, once per process. Raises `UserError` if it would leak."""
    if sys.platform != "linux":
        raise UserError(
            f"the code sandbox needs Linux, this is {sys.platform}: leave out code tasks"
        )
    lines = _probe(Limits(wall_seconds=PROBE_SECONDS))
    if "refused" in lines:
        reason = f"{lines['refused']}: {os.strerror(lines['error'])}"
        raise UserError(f"the code sandbox cannot be built here ({reason}): {REMEDY}")
    if "network" not in lines:
        raise UserError(f"the code sandbox did not start within {PROBE_SECONDS:.0f} s: {REMEDY}")
    fields = [field.name for field in dataclasses.fields(Enforced)]
    enforced = Enforced(**{name: lines[name] is True for name in fields})
    leaks = [
        name for name in ("network", "files", "user", "processes") if not getattr(enforced, name)
    ]
    if leaks:
        raise UserError(f"the code sandbox does not hold here ({', '.join(leaks)} open): {REMEDY}")
    return enforced


def _probe(limits: Limits) -> dict:
    listener = socket.create_server(("127.0.0.1", 0))
    ends = socket.socketpair()
    with listener, ends[0], ends[1], tempfile.NamedTemporaryFile() as file:
        job = {
            "role": "probe", "limits": dataclasses.asdict(limits),
            "host_port": listener.getsockname()[1],
            "host_files": [__file__, sys.executable, "/etc/passwd", "/proc/self", file.name],
        }  # fmt: skip
        cage = start_cage(job, ends[0].fileno())
        try:
            listen((cage,), cage, time.monotonic() + limits.wall_seconds)
        finally:
            cage.end()
    return cage.lines
