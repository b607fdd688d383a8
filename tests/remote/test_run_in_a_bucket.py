"""`selfevo run --workdir=gs://...` as processes that are killed, on machines that are lost."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfevo_jax.remote.bucket import Bucket

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/quickstart.py:tiny"
DONE = re.compile(r"round_00/evaluate: \d+/\d+ answers in")
LIMIT = 900  # seconds that one start of a miniature run may take
# Wall clock, and what a stopped run and an undisturbed one name differently.
TIMES = {"timings.jsonl", "goodput.jsonl", "log.jsonl", "summary.json", "report.html", "run.json"}
OFTEN = """
import sys
from selfevo_jax.cli import main
from selfevo_jax.remote import mirror
mirror.SAVE_SECONDS = 0.3
sys.exit(main(sys.argv[1:]))
"""


class Machine:
    """A folder for caches, and one run at a time; `lost` takes all that is on it away."""

    def __init__(self, folder: Path, environment) -> None:
        self.cache, self.said = folder / "cache", folder / "said"
        self.cache.mkdir(parents=True)
        self._environment = os.environ | environment | {"SELFEVO_CACHE": str(self.cache)}

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", OFTEN, *arguments]
        environment = self._environment | {"JAX_PLATFORMS": "cpu"}
        with open(self.said, "a") as said:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)

    def run(self, workdir: str, *options: str) -> subprocess.Popen:
        return self.start("run", CONFIG, f"--workdir={workdir}", *options)

    def finish(self, workdir: str) -> None:
        assert self.run(workdir).wait(LIMIT) == 0, self.said.read_text()

    def wait_for(self, pattern: str, process: subprocess.Popen) -> None:
        limit = time.monotonic() + LIMIT
        while not any(self.cache.glob(f"workdirs/*/{pattern}")):
            assert process.poll() is None and time.monotonic() < limit, self.said.read_text()
            time.sleep(0.01)

    def lost(self) -> None:
        shutil.rmtree(self.cache)


def results(folder: Path, files) -> dict[str, bytes]:
    return {name: kept for name, kept in files(folder).items() if Path(name).name not in TIMES}


@pytest.mark.timeout(1800)
def test_machines_come_and_go_and_the_bytes_are_the_same(server, url, tmp_path, files):
    """One machine is taken away at once, one with a notice, one ends the run."""
    machines = [Machine(tmp_path / str(number), server.environment()) for number in range(4)]
    machines[0].finish(str(tmp_path / "undisturbed"))

    run = machines[1].run(url)
    machines[1].wait_for("round_01/train/checkpoints", run)
    time.sleep(1.0)
    run.kill()
    run.wait()
    machines[1].lost()

    run = machines[2].run(url)
    machines[2].wait_for("round_02/sample/records.part.jsonl", run)
    run.send_signal(signal.SIGTERM)
    assert run.wait(LIMIT) == 143, machines[2].said.read_text()
    assert "told to stop" in machines[2].said.read_text()
    machines[2].lost()

    machines[3].finish(url)
    copy = machines[3].start("fetch", url, str(tmp_path / "copy"))
    assert copy.wait(LIMIT) == 0, machines[3].said.read_text()
    assert results(tmp_path / "copy", files) == results(tmp_path / "undisturbed", files)
    asked = [bool(DONE.search(machine.said.read_text())) for machine in machines[1:]]
    assert asked == [True, False, False], "what a lost machine had finished is not done again"


def test_a_run_that_another_has_taken_over_ends(server, url, tmp_path):
    machine = Machine(tmp_path, server.environment())
    run = machine.run(url)
    machine.wait_for("round_00/evaluate", run)
    assert Bucket(url)._made("owners", 2, {"host": "elsewhere", "process": 7, "since": "now"})
    assert run.wait(LIMIT) == 2
    last = machine.said.read_text().splitlines()[-1]
    assert last.startswith(f"error: {url} was taken over by process 7 on elsewhere")


def test_what_cannot_be_is_one_line(server, url, tmp_path):
    machine = Machine(tmp_path, server.environment())
    assert machine.run("gs://nobody/x").wait(LIMIT) == 2
    assert "gs://nobody/x cannot be used" in machine.said.read_text().splitlines()[-1]
    assert machine.start("fetch", url, str(tmp_path / "copy")).wait(LIMIT) == 2
    assert f"{url} holds no run" in machine.said.read_text().splitlines()[-1]


def test_several_hosts_are_refused(server, url, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    machines = [Machine(tmp_path / str(host), server.environment()) for host in range(2)]
    hosts = [
        machine.run(url, f"--cluster=127.0.0.1:{port}", "--hosts=2", f"--host={host}")
        for host, machine in enumerate(machines)
    ]
    # Host 0 may be gone before the other has said so; then that is aborted, or says it lost it.
    first, other = [host.wait(LIMIT) for host in hosts]
    assert first == 2 and other in (2, 75, -signal.SIGABRT)
    assert f"--workdir={url} is for a run on one host" in machines[0].said.read_text()
