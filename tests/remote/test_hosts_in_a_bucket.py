"""`selfevo run --cluster --workdir=gs://...` on two hosts that share no folder: real processes with
four virtual devices each, which are killed, and whose folders are lost."""

import json
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from selfevo_jax.parallel.distributed import LOST
from selfevo_jax.remote.bucket import Bucket

SMALL = ("rounds=1", "prompts.n=16", "sample.n=16", "evaluate.n=8", "learn.lr=3e-3")
OPTIONS = [f"--config.{text}" for text in SMALL]
# 24 saves in 96 steps, so that the bucket surely sees a checkpoint before the fit ends.
MORE = ("learn.epochs=48", "learn.lr=2e-4", "learn.checkpoint_every=4")
LONGER = [*OPTIONS, *(f"--config.{text}" for text in MORE)]
SAMPLED = ("round_00/evaluate", "round_01/prompts", "round_01/sample", "round_01/pair")
TRAIN = "round_01/train"
# Wall clock, and what depends on it or on the workdir's name.
TIMES = ("timings", "goodput", "log", "summary.json", "report.html", "run.json")
pytestmark = pytest.mark.timeout(1800)


class Hosts:
    """Two machines that run one thing."""

    def __init__(self, machines, where) -> None:
        self.machines, self._where = machines, where

    def run(self, workdir: str, options=OPTIONS) -> None:
        cluster = f"--cluster={self._where()}"
        for host, one in enumerate(self.machines):
            one.run(workdir, *options, cluster, "--hosts=2", f"--host={host}")

    def end(self, status: int = 0) -> None:
        for one in self.machines:
            one.end(status)

    def lost(self) -> None:
        for one in self.machines:
            one.kill()
        for one in self.machines:
            one.lost()


@pytest.fixture
def hosts(machine, where):
    """Gives two new machines, which have nothing."""
    return lambda: Hosts([machine(4), machine(4)], where)


@pytest.fixture
def fetched(machine, url, tmp_path):
    """Gives what the bucket holds, as a folder."""

    def fetch() -> Path:
        one = machine()
        one.start("fetch", url, str(tmp_path / "copy"))
        one.end()
        return tmp_path / "copy"

    return fetch


@pytest.fixture
def saved(url, until):
    """Waits until the bucket has a whole checkpoint: it has sums when the next one is begun."""
    bucket = Bucket(url)

    def there() -> bool:
        state = bucket.newest()
        return state is not None and any(name.endswith("/sums.json") for name in state.files)

    return lambda: until(there)


def on_one(machine, workdir, options=OPTIONS) -> None:
    """Runs to the end on one host with as many devices."""
    one = machine(8)
    one.run(str(workdir), *options)
    one.end()


def content(folder: Path, files) -> dict[str, bytes]:
    return {n: kept for n, kept in files(folder).items() if not Path(n).name.startswith(TIMES)}


def starts(cache: Path) -> int:
    """How often the training was begun or gone on with, and came to the end of a step."""
    return sum(
        path.read_text().count('"machine"') for path in cache.glob(f"*/*/{TRAIN}/timings.jsonl")
    )


def losses(folder: Path) -> list[float]:
    lines = (folder / TRAIN / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def same(folder: Path, alone: Path) -> None:
    """Equal records, and losses and weights but for the order in which hosts are added up."""
    for stage in SAMPLED:
        file = f"{stage}/records.jsonl"
        assert (folder / file).read_bytes() == (alone / file).read_bytes(), stage
    assert losses(folder) == pytest.approx(losses(alone), abs=1e-6, rel=0)
    found, expected = (
        load_file(f / TRAIN / "adapter/adapter_model.safetensors") for f in (folder, alone)
    )
    assert found.keys() == expected.keys() and len(found) > 4
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)
    assert not list(folder.rglob("*.part.jsonl"))


def test_two_hosts_give_what_one_gives_on_disk(hosts, machine, url, fetched, tmp_path):
    on_one(machine, tmp_path / "alone")
    two = hosts()
    two.run(url)
    two.end()
    copy = fetched()
    same(copy, tmp_path / "alone")
    assert (copy / "report.html").exists() and (copy / "log-1.jsonl").exists()
    assert (copy / "round_01/sample/timings-1.jsonl").read_text()  # host 1 did its share
    for one in two.machines:
        one.lost()
    on_one(machine, url)
    same(fetched(), tmp_path / "alone")


@pytest.mark.slow
def test_all_killed_twice_and_all_folders_lost_gives_the_same_bytes(
    hosts, url, fetched, saved, tmp_path, files
):
    """While they sample, and while they train."""
    whole = hosts()
    whole.run(str(tmp_path / "whole"), LONGER)  # a folder that both see
    whole.end()
    one, two, three = hosts(), hosts(), hosts()
    one.run(url, LONGER)
    one.machines[1].wait_for("round_01/sample/records-1.part.jsonl")
    time.sleep(1.0)
    one.lost()
    two.run(url, LONGER)
    saved()
    two.lost()
    three.run(url, LONGER)
    three.end()
    assert "going on after step" in three.machines[0].said()
    assert content(fetched(), files) == content(tmp_path / "whole", files)


@pytest.mark.slow
def test_a_lost_host_is_named_and_one_goes_on_alone(hosts, machine, url, fetched, saved, tmp_path):
    on_one(machine, tmp_path / "alone", LONGER)
    two = hosts()
    two.run(url, LONGER)
    saved()
    two.machines[1].kill()
    two.machines[0].end(LOST, limit=60)
    assert f"lost host 1 ({socket.gethostname()})" in two.machines[0].said()
    two.lost()
    on_one(machine, url, LONGER)
    same(fetched(), tmp_path / "alone")


@pytest.mark.slow
def test_one_host_is_followed_by_two_which_are_told_to_stop(
    hosts, machine, url, fetched, saved, tmp_path, until
):
    on_one(machine, tmp_path / "alone", LONGER)
    one, two, again = machine(8), hosts(), hosts()
    one.run(url, *LONGER)
    saved()
    one.kill()
    one.lost()
    two.run(url, LONGER)
    until(lambda: starts(two.machines[0].cache) == 2)
    two.machines[1].process.send_signal(signal.SIGTERM)
    two.end(143)
    assert "going on after step" in two.machines[0].said()
    two.lost()
    again.run(url, LONGER)
    again.end()
    same(fetched(), tmp_path / "alone")
