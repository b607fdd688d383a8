"""Hosts that share no folder see each other's files: real processes, and a bucket between them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfevo_jax.parallel.distributed import LOST
from selfevo_jax.remote.bucket import Bucket

WORKER = Path(__file__).with_name("hosts_worker.py")
LIMIT = 120


class Hosts:
    """Two hosts, each with a cache of its own."""

    def __init__(self, url: str, folder: Path, environment: dict[str, str], where) -> None:
        self._url, self._folder, self._environment, self._where = url, folder, environment, where
        self.processes: list[subprocess.Popen] = []

    def start(self, story: str) -> None:
        where = self._where()
        self.processes = []
        for host in range(2):
            command = [sys.executable, str(WORKER), story, self._url, where, "2", str(host)]
            environment = os.environ | self._environment
            environment |= {"SELFEVO_CACHE": str(self._folder / str(host)), "JAX_PLATFORMS": "cpu"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self.processes.append(subprocess.Popen(command, env=environment, text=True, **pipes))

    def tell(self, story: str) -> list[dict]:
        """What each has seen at the end of a story."""
        self.start(story)
        return self.told()

    def told(self) -> list[dict]:
        ends = [process.communicate(timeout=LIMIT) for process in self.processes]
        assert [process.returncode for process in self.processes] == [0, 0], ends
        return [json.loads(out.splitlines()[-1]) for out, _ in ends]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def lost(self) -> None:
        shutil.rmtree(self._folder)


@pytest.fixture
def hosts(server, url, tmp_path, where):
    hosts = Hosts(url, tmp_path / "hosts", server.environment(), where)
    yield hosts
    hosts.kill()


def test_what_one_host_wrote_all_see(hosts, url):
    zero, one = hosts.tell("together")
    checkpoint = "round_01/train/checkpoints/4/state"
    assert one["after agreed"] == ["round_01/a/records.jsonl"]
    assert zero["after agreed"] == ["round_01/a/records.jsonl", checkpoint]
    assert [zero[f"lines {n}"] for n in range(3)] == [[1, 1], [2, 2], [3, 3]]
    assert [one[f"lines {n}"] for n in range(3)] == [[1], [2], [3]]
    assert one["at the end"] == ["log.jsonl", "round_01/b/records.jsonl"]
    assert zero["at the end"] == sorted([*one["at the end"], checkpoint])
    assert set(Bucket(url).newest().files) == {*zero["at the end"], "last", "last-1"}


def test_pieces_stay_until_the_last_host_has_them(hosts):
    zero, one = hosts.tell("behind")
    assert zero == one == {"seen": [f"version {number}" for number in range(5)]}


def test_what_hosts_saved_for_themselves_is_there_when_all_are_lost(hosts, url, until):
    hosts.start("killed")
    main = Bucket(url)

    def saved(bucket, name):
        state = bucket.newest()
        return state is not None and name in state.files and state.files[name]

    until(lambda: saved(main, "records.part.jsonl"))
    until(lambda: any(saved(host, "records-1.part.jsonl") for host in main.hosts()))
    assert "records-1.part.jsonl" not in main.newest().files
    assert [set(host.newest().files) for host in main.hosts()] == [{"records-1.part.jsonl"}]
    hosts.kill()
    hosts.lost()
    zero, one = hosts.tell("again")
    lines = "line\n" * 3
    assert zero == one
    assert zero == {
        "document": "of host 0", "records.part.jsonl": lines, "records-1.part.jsonl": lines,
    }  # fmt: skip


def test_hosts_wait_for_a_bucket_that_is_away(hosts, server):
    hosts.start("away")
    for process in hosts.processes:
        assert process.stdout.readline() == "ready\n"
    server.stop()
    try:
        for process in hosts.processes:
            process.stdin.write("\n")
            process.stdin.flush()
        said = hosts.processes[0].stderr
        assert any("trying again" in line for line in iter(said.readline, ""))
    finally:
        server.start()
    zero, one = hosts.told()
    assert zero["seen"] == ["document", "own", "own-1"]
    assert one["seen"] == ["document", "own-1"]


@pytest.mark.slow
def test_a_host_that_dies_in_an_exchange_is_named(hosts, server):
    """Host 0 waits for it, and so does what it waits for."""
    hosts.start("away")
    for process in hosts.processes:
        assert process.stdout.readline() == "ready\n"
    zero, one = hosts.processes
    zero.stdin.write("\n")
    zero.stdin.flush()
    one.kill()
    _, said = zero.communicate(timeout=60)
    assert zero.returncode == LOST and "lost host 1" in said
