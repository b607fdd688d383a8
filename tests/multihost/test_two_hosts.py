"""Two real processes give what one gives; a lost one is named, and the run goes on without it."""

import shutil
import signal
import socket
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from selfevo_jax.parallel.distributed import LOST

SAMPLED = ("round_00/evaluate", "round_01/prompts", "round_01/sample", "round_01/pair")
TRAIN = "round_01/train"
ADAPTER = f"{TRAIN}/adapter/adapter_model.safetensors"


def same(run, alone) -> None:
    """Equal records, and losses equal to 1e-6; what a trained policy says may differ in the last
    digit of its log-probs, as its weights do."""
    for stage in SAMPLED:
        file = f"{stage}/records.jsonl"
        assert (run.workdir / file).read_bytes() == (alone.workdir / file).read_bytes(), stage
    assert run.losses() == pytest.approx(alone.losses(), abs=1e-6, rel=0)
    found, expected = (load_file(r.workdir / ADAPTER) for r in (run, alone))
    assert found.keys() == expected.keys() and len(found) > 4
    for name, array in found.items():  # of arrays that no host held whole
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)
    answers = "round_01/evaluate/records.jsonl"
    assert run.rows(answers) == alone.rows(answers)
    assert not list(run.workdir.rglob("*.part.jsonl"))


def test_two_hosts_equal_one(two, alone):
    same(two, alone)
    assert (two.workdir / "report.html").exists()
    assert two.rows(f"{TRAIN}/metrics.jsonl")[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert len(two.rows("round_01/sample/timings-1.jsonl")) >= 1  # host 1 did its share


def test_step_times_of_all_hosts_are_written_down(two):
    *others, last = two.rows(f"{TRAIN}/goodput.jsonl")
    assert [host["name"] for host in last["hosts"]] == [socket.gethostname()] * 2
    assert all(0 < host["own"] <= host["median"] <= host["slowest"] for host in last["hosts"])
    assert not any("hosts" in line for line in others)


def test_two_hosts_save_the_same_model(two, alone):
    """A model that no host holds whole is saved as if one did."""
    ours, theirs = two.workdir.with_name("model"), alone.workdir.with_name("model")
    names = sorted(path.name for path in theirs.iterdir())
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert sorted(path.name for path in ours.iterdir()) == names
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


@pytest.mark.slow
def test_a_lost_host_is_named_and_the_run_goes_on(run, alone, tmp_path):
    """Host 1 is killed while it trains: host 0 names it within a minute; one process goes on."""
    two = run(tmp_path / "run", 2, 4)
    two.until(f"{TRAIN}/checkpoints/2")
    killed = time.monotonic()
    two.processes[1].kill()
    assert two.statuses(60)[0] == LOST
    assert time.monotonic() - killed < 60
    assert f"lost host 1 ({socket.gethostname()})" in two.said(0).read_text()
    assert not (two.workdir / TRAIN / "stage.json").exists()
    shutil.copytree(two.workdir, tmp_path / "copy")
    same(run(two.workdir, 1, 8).finish(), alone)
    same(run(tmp_path / "copy", 4, 2).finish(), alone)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [f"{TRAIN}/checkpoints/2", "round_01/sample/*.part.jsonl"])
def test_a_host_that_hangs_is_named_as_one_that_is_lost(run, tmp_path, moment):
    """Host 1 stands still, in a step that both work on and where each works for itself."""
    two = run(tmp_path / "run", 2, 4)
    two.until(moment)
    stopped = time.monotonic()
    two.processes[1].send_signal(signal.SIGSTOP)
    assert two.processes[0].wait(60) == LOST
    assert time.monotonic() - stopped < 60
    assert f"lost host 1 ({socket.gethostname()})" in two.said(0).read_text()


@pytest.mark.slow
def test_the_loss_of_the_host_where_all_meet_is_told(run, tmp_path):
    two = run(tmp_path / "run", 2, 4)
    two.until("round_01/sample/records-1.part.jsonl")
    two.processes[0].kill()
    assert two.statuses(60)[1] != 0
    limit = time.monotonic() + 10
    while "lost host 0" not in two.said(1).read_text():
        assert time.monotonic() < limit, two.said(1).read_text()[-3000:]
        time.sleep(0.1)
