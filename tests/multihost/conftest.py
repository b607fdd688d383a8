"""The miniature quickstart as real processes that share a workdir: hosts x virtual CPU devices."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("group_worker.py")
SMALL = ("rounds=1", "prompts.n=16", "sample.n=16", "evaluate.n=8", "learn.lr=3e-3")
LIMIT = 600.0


def a_free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@dataclass
class Run:
    """One start of a run on `hosts` processes of `devices` virtual devices each."""

    workdir: Path
    cache: Path
    hosts: int
    devices: int
    overrides: tuple[str, ...] = SMALL
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self) -> "Run":
        """Through the command line."""
        command = [
            sys.executable, "-m", "selfevo_jax.cli", "run", f"--workdir={self.workdir}",
            f"--config={ROOT / 'configs' / 'quickstart.py'}:tiny",
            *(f"--config.{text}" for text in self.overrides),
        ]  # fmt: skip
        where = f"--cluster=localhost:{a_free_port()}"
        for host in range(self.hosts):
            cluster = [where, f"--hosts={self.hosts}", f"--host={host}"] if self.hosts > 1 else []
            self._spawn(host, [*command, *cluster])
        return self

    def start_group(self) -> "Run":
        """Through `group_worker.py`, which does more; the run is in the folder `run` of its own."""
        where = f"localhost:{a_free_port()}"
        command = [sys.executable, str(WORKER), str(self.workdir.parent)]
        for host in range(self.hosts):
            cluster = [where, str(self.hosts), str(host)] if self.hosts > 1 else []
            self._spawn(host, [*command, *cluster])
        return self

    def _spawn(self, host: int, command: list[str]) -> None:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={self.devices}"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu", "SELFEVO_CACHE": str(self.cache), "XLA_FLAGS": flags,
        }  # fmt: skip
        with open(self.said(host), "w") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        self.processes.append(process)

    def said(self, host: int) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}-{self.hosts}-{host}.out")

    def until(self, moment: str) -> None:
        """Waits until a file that matches `moment` is in the workdir."""
        limit = time.monotonic() + LIMIT
        while not list(self.workdir.glob(moment)):
            assert time.monotonic() < limit, f"{moment} never came"
            assert all(p.poll() is None for p in self.processes), self.said(0).read_text()[-3000:]
            time.sleep(0.01)

    def statuses(self, limit: float = LIMIT) -> list[int]:
        """The exit statuses, once all have ended."""
        end = time.monotonic() + limit
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]

    def finish(self) -> "Run":
        statuses = self.statuses()
        said = [self.said(host).read_text()[-3000:] for host in range(self.hosts)]
        assert statuses == [0] * self.hosts, "\n".join(said)
        return self

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def rows(self, file: str) -> list[dict]:
        return [json.loads(line) for line in (self.workdir / file).read_text().splitlines()]

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows("round_01/train/metrics.jsonl")]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    """The random model and compiled programs, for all runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def where() -> str:
    """An address where hosts can meet."""
    return f"localhost:{a_free_port()}"


@pytest.fixture
def run(shared_cache):
    """Starts runs; whatever still runs at the end is killed."""
    started = []

    def start(workdir: Path, hosts: int, devices: int, *overrides: str) -> Run:
        started.append(Run(workdir, shared_cache, hosts, devices, (*SMALL, *overrides)).start())
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture(scope="session")
def alone(shared_cache, tmp_path_factory) -> Run:
    """One process with eight devices: an undisturbed run, and a saved model beside it."""
    return group(Run(tmp_path_factory.mktemp("alone") / "run", shared_cache, 1, 8))


@pytest.fixture(scope="session")
def two(alone, shared_cache, tmp_path_factory) -> Run:
    """The same of two processes with four devices each."""
    return group(Run(tmp_path_factory.mktemp("two") / "run", shared_cache, 2, 4))


def group(run: Run) -> Run:
    try:
        return run.start_group().finish()
    finally:
        run.end()
