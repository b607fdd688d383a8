"""The miniature quickstart, told to stop at random moments: the undisturbed run's bytes."""

import random
import signal
import time

import pytest

# Wall clock, and what a stopped run and an undisturbed one may name differently.
TIMES = {"timings.jsonl", "goodput.jsonl", "log.jsonl", "summary.json", "report.html", ".lock"}
MOMENTS = (
    "round_00/evaluate/records.part.jsonl",
    "round_01/sample/records.part.jsonl",
    "round_01/sample/records.jsonl",
    "round_01/train/metrics.jsonl",
    "round_01/train/checkpoints/2",
    "round_01/train/checkpoints/4",
    "round_01/train/adapter",
    "round_02/sample/records.part.jsonl",
    "round_02/train/metrics.jsonl",
)


def content(workdir):
    """Every file that must not depend on when a run was stopped, nor on the workdir's name."""
    return {
        str(path.relative_to(workdir)): path.read_bytes().replace(str(workdir).encode(), b"WORKDIR")
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and path.name not in TIMES and "reference" not in path.parts
    }


def stop_at(one, moment, delay) -> bool:
    """Sends SIGTERM `delay` seconds after `moment` is there; False if the run ended first."""
    process = one.processes[0]
    while not (one.workdir / moment).exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    if one.statuses() == [0]:
        return False
    assert one.statuses() == [143], one.said(0).read_text()[-3000:]
    assert "told to stop; everything finished is kept" in one.said(0).read_text()
    return True


@pytest.mark.slow
def test_stopped_five_times_gives_the_same_bytes(run, tmp_path):
    whole = run(tmp_path / "whole", 1, 1, "rounds=2").finish()
    rng = random.Random(7)
    moments = sorted(rng.sample(MOMENTS, 5), key=MOMENTS.index)
    stops = [
        stop_at(run(tmp_path / "told", 1, 1, "rounds=2"), moment, rng.uniform(0, 0.1))
        for moment in moments
    ]
    assert sum(stops) >= 4, f"too few stops hit a running process: {stops} at {moments}"
    told = run(tmp_path / "told", 1, 1, "rounds=2").finish()
    expected, found = content(whole.workdir), content(told.workdir)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []


@pytest.mark.slow
def test_two_hosts_stop_after_the_same_step(run, tmp_path):
    """One of them is told; both save, end with the same status, and go on to the same losses."""
    longer = ("learn.epochs=8", "learn.lr=1e-3", "learn.checkpoint_every=1000")
    alone = run(tmp_path / "alone", 1, 8, *longer).finish()
    two = run(tmp_path / "run", 2, 4, *longer)
    metrics = two.workdir / "round_01/train/metrics.jsonl"
    two.until("round_01/train/metrics.jsonl")
    while not metrics.stat().st_size:
        time.sleep(0.01)
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.statuses() == [143, 143], two.said(0).read_text()[-3000:]
    saved = [int(path.name) for path in (two.workdir / "round_01/train/checkpoints").iterdir()]
    assert len(saved) == 1 and saved[0] < len(alone.losses())
    again = run(two.workdir, 2, 4, *longer).finish()
    assert again.losses() == pytest.approx(alone.losses(), abs=1e-6, rel=0)
    assert len(again.losses()) == len(alone.losses())
