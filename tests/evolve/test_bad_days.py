"""A whole miniature run on a bad day: the disk fills up, the clock jumps, another run is there."""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from selfevo_jax import cli
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import locked
from selfevo_jax.evolve.tiny import random_model

FEW = ("evaluate.n=2",)
FULL = 40_000  # bytes of the sample journal at which the disk is full


@pytest.fixture(scope="module")
def kept() -> dict:
    """What the runs of this file gave, which must be the same."""
    return {}


def test_a_full_disk_in_a_run_keeps_what_was_made(mini, kept, content_of, monkeypatch):
    """RLIMIT_FSIZE stands for the disk's end: no file can grow past it."""
    random_model("random:tiny?seed=0")  # larger than the limit, so made before
    # Nor may the compile cache write under the limit, or it would keep a torn entry.
    seconds = "jax_persistent_cache_min_compile_time_secs"
    before, (soft, hard) = getattr(jax.config, seconds), resource.getrlimit(resource.RLIMIT_FSIZE)
    jax.config.update(seconds, 1000.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
    try:
        with pytest.raises(UserError, match="no space left on the disk") as full:
            mini(*FEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update(seconds, before)
    assert "inputs finished so far are safe" in str(full.value)
    journal = mini.workdir / "round_01/sample/records.part.jsonl"
    assert len(journal.read_bytes().splitlines()) - 2 > 20
    assert (mini.workdir / "round_00/evaluate/stage.json").exists()
    assert "round_01/sample: goes on where it stopped" in mini(*FEW)
    assert len(mini.rows("round_01/sample")) == 24 * 16
    kept["full disk"] = content_of(mini)


def test_a_clock_that_jumps_changes_no_byte_and_no_duration(mini, kept, content_of, monkeypatch):
    """The wall clock goes an hour back at every look at it."""
    clock = itertools.count(1_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    mini(*FEW)
    monkeypatch.undo()
    assert next(clock) < 1_000_000_000 - 10 * 3600  # it was looked at, and jumped
    spent = [
        line["seconds"]
        for path in mini.workdir.rglob("timings.jsonl")
        for line in map(json.loads, path.read_text().splitlines())
    ]
    assert len(spent) > 7 and min(spent) >= 0 and max(spent) < 3600
    events = [json.loads(line) for line in (mini.workdir / "log.jsonl").read_text().splitlines()]
    times = [event["time"] for event in events]
    assert times == sorted(times, reverse=True)  # the order of the file is that of the events
    stages = [(e["event"], e["stage"]) for e in events if e["event"] in ("begin", "end")]
    assert [kind for kind, _ in stages] == ["begin", "end"] * 7
    assert [stage for _, stage in stages[::2]] == [stage for _, stage in stages[1::2]]
    assert cli.main(["report", str(mini.workdir)]) == 0
    summary = json.loads((mini.workdir / "summary.json").read_text())
    assert 0 <= summary["totals"]["seconds"] < 3600
    for name in ("summary.json", "report.html"):
        (mini.workdir / name).unlink()
    kept["clock"] = content_of(mini)
    for other in kept.values():
        assert other == kept["clock"]


def test_the_command_refuses_a_second_run_on_its_workdir(tmp_path, cache, monkeypatch, capsys):
    """It says who is there and touches nothing."""
    monkeypatch.setenv("SELFEVO_CACHE", str(cache))
    config = Path(__file__).parents[2] / "configs/quickstart.py"
    with locked(tmp_path / "run"):
        before = sorted((tmp_path / "run").iterdir())
        assert cli.main(["run", f"--config={config}:tiny", f"--workdir={tmp_path / 'run'}"]) == 2
        assert sorted((tmp_path / "run").iterdir()) == before
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "is in use by another run (pid " in said


def test_processes_that_make_the_same_random_model_at_once_all_get_it(tmp_path):
    """As the workers of a group do when they start with an empty cache."""
    code = "import sys; from selfevo_jax.evolve.tiny import random_model\n"
    code += "sys.stdin.readline(); print(random_model('random:tiny?seed=9'))"
    environment = os.environ | {"SELFEVO_CACHE": str(tmp_path)}
    workers = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]  # fmt: skip
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    ended = [(*worker.communicate(timeout=120), worker.returncode) for worker in workers]
    assert [code for _, _, code in ended] == [0] * 4, [said[-300:] for _, said, _ in ended]
    assert sorted(path.name for path in tmp_path.glob("random/[!.]*/*")) == sorted(
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    )
