"""Starts a group of processes for one training, follows it, and says what failed first.

The folder of the job is on a file system that all hosts share:

    job.json, examples.jsonl    what to do
    logs/                       what every process printed
    failures/HOST.json          what failed first on a host
    result.json                 counts, written by the first process at the end
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import read_json, write_json
from selfevo_jax.torch_backend.group import Group

# What another host's shell would not know; Slurm hands over everything by itself. No secrets: a
# command line can be read by all users of a machine.
HANDED = re.compile(r"(?!.*(KEY|SECRET|TOKEN))((CUDA|GLOO|HF|NCCL|SELFEVO)_.*|PYTHONPATH)")
MISTAKE = "UserError: "


class WorkerError(RuntimeError):
    """A process of the group failed by a defect, or was killed."""


def run_group(
    group: Group, folder: Path, watched: Path, on_line: Callable[[str], None]
) -> dict[str, Any]:
    """Runs the job in `folder` and returns its result; `on_line` gets each new line of `watched`.

    Raises UserError for a user's mistake in any process, WorkerError for every other failure,
    with the error of the process that failed first.
    """
    for name in ("logs", "failures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "result.json").unlink(missing_ok=True)
    seen = len(_lines(watched))
    with started(commands(group, folder), folder) as agents:
        while any(agent.poll() is None for agent in agents):
            if any(agent.returncode for agent in agents):
                break
            time.sleep(0.2)
            seen = _follow(watched, seen, on_line)
    if any(agent.returncode for agent in agents):
        raise failure(group, folder)
    _follow(watched, seen, on_line)
    return read_json(folder / "result.json")


def commands(group: Group, folder: Path) -> list[list[str]]:
    """The commands to start here, which start an agent on every host."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    endpoint = f"{group.hosts[0]}:{port}"
    module = "selfevo_jax.torch_backend.agent"
    shape = (str(len(group.hosts)), str(group.processes), endpoint)
    agent = [sys.executable, "-m", module, str(folder.absolute()), *shape]
    if group.reach == "slurm":
        count = str(len(group.hosts))
        return [["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", *agent]]
    if group.reach == "ssh":
        return [_by_ssh(host, agent) for host in group.hosts]
    return [agent]


def _by_ssh(host: str, command: Sequence[str]) -> list[str]:
    given = [f"{name}={value}" for name, value in os.environ.items() if HANDED.fullmatch(name)]
    line = f"cd {shlex.quote(os.getcwd())} && {shlex.join(['env', *given, *command])}"
    return ["ssh", "-o", "BatchMode=yes", host, line]


@contextlib.contextmanager
def started(lines: Sequence[Sequence[str]], folder: Path) -> Iterator[list[subprocess.Popen]]:
    """The commands running, with a pipe as standard input that ends when this process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "agents.log", "wb") as log:
        running = [
            subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
            for line in lines
        ]
        try:
            yield running
        finally:
            for one in running:
                end_process(one)


def end_process(process: subprocess.Popen, patience: float = 20.0) -> None:
    """Closes the lifeline and waits; what does not end by itself is ended."""
    if process.stdin is not None and process.poll() is None:
        process.stdin.close()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failure(group: Group, folder: Path) -> Exception:
    """The error of the process that failed first on any host."""
    found = [read_json(path) for path in (folder / "failures").glob("*.json")]
    if not found:
        tail = (folder / "agents.log").read_text(errors="replace")[-2000:]
        return WorkerError(f"the group of {group.size} processes did not start:\n{tail}")
    first = min(found, key=lambda one: (not one["killed"], one["when"]))
    place = f"process {first['rank']} of {group.size} failed first"
    message = first["text"].partition("\n")[0]
    if message.startswith(MISTAKE):
        return UserError(f"{message.removeprefix(MISTAKE)} ({place})")
    return WorkerError(f"{place}: {first['text']}\nits output is under {folder / 'logs'}")


def write_job(folder: Path, job: Mapping[str, Any], examples: Sequence[str]) -> None:
    """Puts down what the processes are to do; `examples` are lines of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples.jsonl").write_text("".join(f"{line}\n" for line in examples))
    write_json(folder / "job.json", dict(job))


def _follow(path: Path, seen: int, on_line: Callable[[str], None]) -> int:
    """Hands over the lines after the first `seen`, and says how many there are now."""
    lines = _lines(path)
    for line in lines[seen:]:
        on_line(line)
    return len(lines)


def _lines(path: Path) -> list[str]:
    """The finished lines of a file that another process may be writing."""
    if not path.exists():
        return []
    return path.read_text().rpartition("\n")[0].splitlines()
