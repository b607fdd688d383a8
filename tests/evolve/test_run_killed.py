"""Miniature runs with every stage real, killed with SIGKILL at several moments.

The slow test kills every method, fifty times in all; its moments are printed (`-s`) and are shares
of the bytes that the finished run has, so that they are spread over the whole run on any machine.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 1800  # seconds that one start of a miniature run may take
QUICKSTART, COMBINED = "quickstart:tiny", "combined:both-tiny"
KILLS = {  # more than fifty: a run may end before its last one
    "active:tiny": 7, COMBINED: 7, "elite:tiny": 7, "meteor:tiny": 7, "offline:tiny": 7,
    QUICKSTART: 8, "refeval:tiny": 7, "reflectevo:tiny": 8,
}  # fmt: skip
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


def start(workdir: Path, environment, config: str, *overrides: str) -> subprocess.Popen:
    name, _, variant = config.partition(":")
    command = [sys.executable, "-m", "selfevo_jax.cli", "run", f"--workdir={workdir}", *overrides]
    command.append(f"--config={ROOT}/configs/{name}.py:{variant}")
    with open(workdir.with_suffix(".out"), "a") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)


def finish(workdir: Path, environment, config: str, *overrides: str) -> None:
    status = start(workdir, environment, config, *overrides).wait(LIMIT)
    assert status == 0, workdir.with_suffix(".out").read_text()


def killed(process: subprocess.Popen, ready: Callable[[], bool], delay: float) -> bool:
    """Kills the process `delay` seconds after it is `ready`; False if it ended first."""
    limit = time.monotonic() + LIMIT
    while not ready() and process.poll() is None:
        assert time.monotonic() < limit, "the moment never came"
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is not None:
        assert process.returncode == 0
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def content(workdir: Path) -> dict[str, bytes]:
    """Every file that must not depend on when a run was killed, nor on the workdir's name."""
    return {
        str(path.relative_to(workdir)): path.read_bytes().replace(str(workdir).encode(), b"WORKDIR")
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and path.name not in TIMES and "reference" not in path.parts
    }


def assert_same(whole: Path, broken: Path) -> None:
    expected, found = content(whole), content(broken)
    assert expected.keys() == found.keys() and len(expected) > 10
    assert [name for name in expected if expected[name] != found[name]] == []
    assert not list(broken.rglob("*.part.jsonl")) and not list(broken.rglob("*.tmp"))


def killed_like_whole(folder, moments, *how) -> Path:
    """7.1 k: a run killed at these moments and gone on with has the bytes of a whole run."""
    whole, broken, rng = folder / "whole", folder / "killed", random.Random(20)
    finish(whole, *how)
    kills = [
        killed(start(broken, *how), (broken / moment).exists, rng.uniform(0, 0.05))
        for moment in moments
    ]
    assert sum(kills) >= 4, f"too few kills hit a running process: {kills} at {moments}"
    finish(broken, *how)
    assert_same(whole, broken)
    return broken


def test_killed_five_times_gives_the_same_bytes(tmp_path, environment):
    moments = sorted(random.Random(20).sample(MOMENTS, 5), key=MOMENTS.index)
    broken = killed_like_whole(tmp_path, moments, environment, QUICKSTART)
    before = content(broken)
    assert "round_02/train/adapter/adapter_model.safetensors" in before

    finish(broken, environment, QUICKSTART)
    said = broken.with_suffix(".out").read_text().rpartition("plan")[2]
    assert said.count("finished before, nothing to do") == 13
    assert "loading random:tiny" not in said
    assert content(broken) == before


@pytest.mark.slow
def test_a_combination_killed_five_times_gives_the_same_bytes(tmp_path, environment):
    how = environment, COMBINED, "--config.betas=(0.05,)"
    broken = killed_like_whole(tmp_path, MOMENTS_OF_A_COMBINATION, *how)
    assert (broken / "round_02/beta_0.05.train/adapter/adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize(("config", "kills"), KILLS.items())
def test_fifty_kills_change_no_byte(config, kills, tmp_path, environment):
    assert sum(KILLS.values()) - len(KILLS) >= 50
    whole, broken, rng = tmp_path / "whole", tmp_path / "killed", random.Random(config)
    finish(whole, environment, config)
    hits = 0
    for share in sorted(rng.random() for _ in range(kills)):
        enough = share * written(whole)
        process = start(broken, environment, config)
        hit = killed(process, lambda: written(broken) >= enough, rng.uniform(0, 0.05))  # noqa: B023
        hits += hit
        where = stage_at_work(broken) if hit else "it had ended"
        print(f"{config}: killed at {share:.3f} of the bytes, in {where}", flush=True)
    assert hits >= kills - 1
    finish(broken, environment, config)
    assert_same(whole, broken)


def written(workdir: Path) -> int:
    """Bytes below a folder that is being written to."""
    total = 0
    for folder, _, names in os.walk(workdir):
        for name in names:
            try:
                total += os.stat(f"{folder}/{name}").st_size
            except FileNotFoundError:  # renamed between the two looks
                continue
    return total


def stage_at_work(workdir: Path) -> str:
    """What the run was doing: the stages that are begun and not finished."""
    begun = {path.parent for path in workdir.glob("round_*/*/*") if path.name != "stage.json"}
    owed = [path for path in begun if not (path / "stage.json").exists()]
    return ", ".join(sorted(str(path.relative_to(workdir)) for path in owed)) or "between stages"
