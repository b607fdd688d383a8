"""Every method in miniature, killed with SIGKILL at fifty random moments in all: the same bytes.

Run by `make test-slow`; the moments are printed (`-s`). A moment is a share of the bytes that the
finished run has, so that kills are spread over the whole run on a machine of any speed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = {
    "active:tiny": 7, "combined:both-tiny": 7, "elite:tiny": 7, "meteor:tiny": 7,
    "quickstart:tiny": 8, "refeval:tiny": 7, "reflectevo:tiny": 7,
}  # fmt: skip
TIMES = {"timings.jsonl", "goodput.jsonl", "log.jsonl", "summary.json", "report.html", ".lock"}
LIMIT = 1800  # seconds that one start of a miniature run may take


def start(config: str, workdir: Path, cache: Path) -> subprocess.Popen:
    name, _, variant = config.partition(":")
    command = [sys.executable, "-m", "selfevo_jax.cli", "run", f"--workdir={workdir}"]
    command.append(f"--config={ROOT}/configs/{name}.py:{variant}")
    with open(workdir.with_suffix(".out"), "a") as said:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=said,
            env=os.environ | {"SELFEVO_CACHE": str(cache), "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip


def finish(config: str, workdir: Path, cache: Path) -> None:
    status = start(config, workdir, cache).wait(LIMIT)
    assert status == 0, workdir.with_suffix(".out").read_text()


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


def killed(process: subprocess.Popen, workdir: Path, enough: int, delay: float) -> bool:
    """Kills the process `delay` seconds after so many bytes are there; False if it ended first."""
    limit = time.monotonic() + LIMIT
    while written(workdir) < enough and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)
    time.sleep(delay)
    if process.poll() is not None:
        assert process.returncode == 0, workdir.with_suffix(".out").read_text()
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


def stage_at_work(workdir: Path) -> str:
    """What the run was doing: the stages that are begun and not finished."""
    begun = {path.parent for path in workdir.glob("round_*/*/*") if path.name != "stage.json"}
    owed = [path for path in begun if not (path / "stage.json").exists()]
    return ", ".join(sorted(str(path.relative_to(workdir)) for path in owed)) or "between stages"


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT)
@pytest.mark.parametrize(("config", "kills"), KILLS.items())
def test_fifty_kills_change_no_byte(config, kills, tmp_path):
    assert sum(KILLS.values()) == 50
    whole, broken, cache = tmp_path / "whole", tmp_path / "killed", tmp_path / "cache"
    finish(config, whole, cache)
    rng = random.Random(config)
    hits = 0
    for share in sorted(rng.random() for _ in range(kills)):
        process = start(config, broken, cache)
        hit = killed(process, broken, int(share * written(whole)), rng.uniform(0, 0.05))
        hits += hit
        where = stage_at_work(broken) if hit else "it had ended"
        print(f"{config}: killed at {share:.3f} of the bytes, in {where}", flush=True)
    assert hits >= kills - 1
    finish(config, broken, cache)
    expected, found = content(whole), content(broken)
    assert expected.keys() == found.keys() and len(expected) > 20
    assert [name for name in expected if expected[name] != found[name]] == []
