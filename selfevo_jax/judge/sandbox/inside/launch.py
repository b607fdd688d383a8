"""Start of a cage: read the job, raise the walls, run the program or its tests, report.

    launcher  (this process, behind the walls after `isolate`)
      init    (process 1 of the cage: when it ends, the kernel ends all that is left inside)
        worker (the program or the tests, with limits and filters)

The report is lines of JSON on a pipe of its own. A program's worker does not hold that pipe; the
tests' worker writes its verdict there, with the nonce that only it was given.
"""

import json
import os
import resource
import signal

from inside import filters, namespaces, probe, programs

PR_SET_PDEATHSIG = 1
SPARE_FILES = 8  # what a worker has open before the program opens anything
OWN_PROCESSES = 3  # launcher, init and the worker's first thread count as threads of the user
STACK_BYTES = 8 << 20


def main() -> None:
    """Runs the job that stands on standard input, and waits for its end."""
    job = json.loads(_read_all(0))
    report = job["report"]
    null = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(null, file)
    limits = job["limits"]
    try:
        namespaces.isolate(limits["work_bytes"], limits["work_files"])
        filters.forbid_privileges()
    except namespaces.StepError as error:
        _write(report, {"refused": error.step, "error": error.error})
        return
    _die_with_parent()
    if os.getppid() != job["parent"]:
        return  # it died before we could ask to be told
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    init = os.fork()
    if init == 0:
        os._exit(_init(job))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.close(report)
    os.close(job["channel"])
    os.waitpid(init, 0)


def _read_all(file: int) -> bytes:
    parts = iter(lambda: os.read(file, 1 << 20), b"")
    return b"".join(parts)


def _write(report: int, line: dict) -> None:
    os.write(report, json.dumps(line).encode() + b"\n")


def _die_with_parent() -> None:
    namespaces.LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _init(job: dict) -> int:
    """Process 1: starts the worker, waits for it, and reports how it ended."""
    _die_with_parent()
    worker = os.fork()
    if worker == 0:
        os._exit(_worker(job))
    os.close(job["channel"])
    _, status, usage = os.wait4(worker, 0)
    seconds = usage.ru_utime + usage.ru_stime
    _write(job["report"], {"status": status, "cpu_seconds": seconds})
    return 0


def _worker(job: dict) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    walls = probe.look_at_walls(job) if job["role"] == "probe" else {}
    _limit(job["limits"])
    _close_others({job["channel"]} | ({job["report"]} if job["role"] != "program" else set()))
    landlock, seccomp = filters.forbid_files(), filters.filter_calls()
    if job["role"] == "program":
        programs.run_program(job)
    elif job["role"] == "tests":
        _write(job["report"], {"nonce": job["nonce"], **programs.run_tests(job)})
    else:
        rest = probe.look_at_limits(job["limits"])
        _write(job["report"], {**walls, **rest, "landlock": landlock, "seccomp": seccomp})
    return 0


def _limit(limits: dict) -> None:
    seconds = limits["cpu_seconds"]
    wanted = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_CPU: seconds,  # then SIGXCPU; one second later SIGKILL
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"] + SPARE_FILES,
        resource.RLIMIT_NPROC: limits["threads"] + OWN_PROCESSES,
        resource.RLIMIT_STACK: STACK_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        top = most + (kind == resource.RLIMIT_CPU)
        top = top if hard == resource.RLIM_INFINITY else min(top, hard)
        resource.setrlimit(kind, (min(most, top), top))


def _close_others(kept: set[int]) -> None:
    """Closes every file but the first three and `kept`."""
    low = 3
    for file in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(low, file)
        low = file + 1
