"""`selfevo run --workdir=gs://...` as processes that are killed, on machines that are lost."""

import re
import signal
from pathlib import Path
from time import sleep

import pytest

from selfevo_jax.remote.bucket import Bucket

DONE = re.compile(r"round_00/evaluate: \d+/\d+ answers in")
# Wall clock, and what a stopped run and an undisturbed one name differently.
TIMES = {"timings.jsonl", "goodput.jsonl", "log.jsonl", "summary.json", "report.html", "run.json"}


def results(folder: Path, files) -> dict[str, bytes]:
    return {name: kept for name, kept in files(folder).items() if Path(name).name not in TIMES}


@pytest.mark.timeout(1800)
def test_machines_come_and_go_and_the_bytes_are_the_same(machine, url, tmp_path, files):
    """One machine is taken away at once, one with a notice, one ends the run."""
    undisturbed, first, second, third = (machine() for _ in range(4))
    undisturbed.run(str(tmp_path / "undisturbed"))
    undisturbed.end()

    first.run(url)
    first.wait_for("round_01/train/checkpoints")
    sleep(1.0)
    first.kill()
    first.lost()

    second.run(url)
    second.wait_for("round_02/sample/records.part.jsonl")
    second.process.send_signal(signal.SIGTERM)
    second.end(143)
    assert "told to stop" in second.said()
    second.lost()

    third.run(url)
    third.end()
    third.start("fetch", url, str(tmp_path / "copy"))
    third.end()
    assert results(tmp_path / "copy", files) == results(tmp_path / "undisturbed", files)
    asked = [bool(DONE.search(one.said())) for one in (first, second, third)]
    assert asked == [True, False, False], "what a lost machine had finished is not done again"


def test_a_run_that_another_has_taken_over_ends(machine, url):
    one = machine()
    one.run(url)
    one.wait_for("round_00/evaluate")
    assert Bucket(url)._made("owners", 2, {"host": "elsewhere", "process": 7, "since": "now"})
    one.end(2)
    last = one.said().splitlines()[-1]
    assert last.startswith(f"error: {url} was taken over by process 7 on elsewhere")


def test_what_cannot_be_is_one_line(machine, url, tmp_path):
    one = machine()
    one.run("gs://nobody/x")
    one.end(2)
    assert "gs://nobody/x cannot be used" in one.said().splitlines()[-1]
    one.start("fetch", url, str(tmp_path / "copy"))
    one.end(2)
    assert f"{url} holds no run" in one.said().splitlines()[-1]
