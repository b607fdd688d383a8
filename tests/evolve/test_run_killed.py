"""Miniature runs with every stage real, killed with SIGKILL at several moments."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = (f"--config={ROOT / 'configs' / 'quickstart.py'}:tiny",)
COMBINED = (f"--config={ROOT / 'configs' / 'combined.py'}:both-tiny", "--config.betas=(0.05,)")
# Wall clock, and what a killed run and an undisturbed one may name differently.
TIMES = {"timings.jsonl", "goodput.jsonl", "log.jsonl", "summary.json", "report.html", ".lock"}
MOMENTS = (
    "round_00/evaluate/records.part.jsonl",
    "round_01/sample/records.part.jsonl",
    "round_01/sample/records.jsonl",
    "round_01/pair/stage.json",
    "round_01/train/metrics.jsonl",
    "round_01/train/checkpoints",
    "round_01/train/adapter",
    "round_02/sample/records.part.jsonl",
    "round_02/train/checkpoints",
    "round_02/train/adapter",
)
MOMENTS_OF_A_COMBINATION = (
    "round_01/reflection.revise/records.part.jsonl",
    "round_01/judge/records.part.jsonl",
    "round_01/beta_0.05.train/checkpoints",
    "round_02/uncertainty/records.part.jsonl",
    "round_02/beta_0.05.train/adapter",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"SELFEVO_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}


def start(workdir: Path, environment, config: tuple[str, ...]) -> subprocess.Popen:
    command = [sys.executable, "-m", "selfevo_jax.cli", "run", *config, f"--workdir={workdir}"]
    with open(workdir.with_suffix(".out"), "a") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)


def content(workdir: Path) -> dict[str, bytes]:
    """Every file that must not depend on when a run was killed, nor on the workdir's name."""
    return {
        str(path.relative_to(workdir)): path.read_bytes().replace(str(workdir).encode(), b"WORKDIR")
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and path.name not in TIMES and "reference" not in path.parts
    }


def kill_at(workdir: Path, environment, config, moment: str, delay: float) -> bool:
    """Starts the run, kills it `delay` seconds after `moment` exists; False if it ended first."""
    process = start(workdir, environment, config)
    limit = time.monotonic() + 240
    while not (workdir / moment).exists() and process.poll() is None:
        assert time.monotonic() < limit, f"{moment} never came"
        time.sleep(0.001)
    time.sleep(delay)
    if process.poll() is not None:
        assert process.returncode == 0, workdir.with_suffix(".out").read_text()
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def killed_like_whole(tmp_path, environment, config, moments, rng) -> Path:
    """7.1 k: a run killed at these moments and gone on with has the bytes of a whole run."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, environment, config).wait(600) == 0, (tmp_path / "whole.out").read_text()
    kills = [kill_at(killed, environment, config, m, rng.uniform(0, 0.05)) for m in moments]
    assert sum(kills) >= 4, f"too few kills hit a running process: {kills} at {moments}"
    assert start(killed, environment, config).wait(600) == 0, (tmp_path / "killed.out").read_text()
    expected, found = content(whole), content(killed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
    assert not list(killed.rglob("*.part.jsonl")) and not list(killed.rglob("*.tmp"))
    return killed


def test_killed_five_times_gives_the_same_bytes(tmp_path, environment):
    rng = random.Random(20)
    moments = sorted(rng.sample(MOMENTS, 5), key=MOMENTS.index)
    killed = killed_like_whole(tmp_path, environment, QUICKSTART, moments, rng)
    before = content(killed)
    assert "round_02/train/adapter/adapter_model.safetensors" in before

    assert start(killed, environment, QUICKSTART).wait(300) == 0
    said = killed.with_suffix(".out").read_text().rpartition("plan")[2]
    assert said.count("finished before, nothing to do") == 13
    assert "loading random:tiny" not in said
    assert content(killed) == before


@pytest.mark.slow
def test_a_combination_killed_five_times_gives_the_same_bytes(tmp_path, environment):
    moments, rng = MOMENTS_OF_A_COMBINATION, random.Random(20)
    killed = killed_like_whole(tmp_path, environment, COMBINED, moments, rng)
    assert (killed / "round_02/beta_0.05.train/adapter/adapter_model.safetensors").exists()
