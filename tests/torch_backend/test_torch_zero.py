"""Fits of two processes under DeepSpeed against the same fits in JAX, and a kill in the middle."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed: pip install 'selfevo_jax[deepspeed]'",
                allow_module_level=True)  # fmt: skip

JOBS = ("zero2:dpo", "zero2:sft", "zero3:dpo", "zero3:sft", "zero2_offload:full", "zero3:full",
        "zero3:remat", "zero3_offload:dpo")  # fmt: skip
WORKER = Path(__file__).with_name("zero_worker.py")


def run(*command: str | Path) -> subprocess.CompletedProcess:
    settings = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def group(folder: Path, *jobs: str) -> subprocess.CompletedProcess:
    """Two processes with these jobs, one after the other."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return run(sys.executable, *launcher, WORKER, folder, *jobs)


@pytest.fixture(scope="module")
def fits(tmp_path_factory) -> Path:
    """The folder with every job done, and the same fits by JAX."""
    folder = tmp_path_factory.mktemp("fits")
    in_jax = sorted({f"jax:{job.partition(':')[2]}" for job in JOBS})
    for done in (group(folder, *JOBS), run(sys.executable, WORKER, folder, *in_jax)):
        assert done.returncode == 0, done.stderr[-5000:]
    return folder


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "trained.npz", allow_pickle=False) as saved:
        return dict(saved)


@pytest.mark.parametrize("job", JOBS)
def test_twenty_steps_of_two_processes_are_those_of_jax(job, fits):
    folder, reference = fits / job.replace(":", "-"), fits / f"jax-{job.partition(':')[2]}"
    found, wanted = metrics(folder), metrics(reference)
    assert len(found) == 20
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        for exact in ("lr", "tokens", "padding_share", "examples", "loss_tokens"):
            assert mine[exact] == theirs[exact], exact
    assert abs(found[0]["loss"] - found[-1]["loss"]) > 0.01
    mine, theirs = trained(folder), trained(reference)
    assert mine.keys() == theirs.keys()
    for path, values in theirs.items():
        np.testing.assert_allclose(mine[path], values, atol=1e-3, err_msg=path)


@pytest.mark.parametrize("config", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_a_kill_in_the_middle_changes_nothing(config, fits, tmp_path):
    assert group(tmp_path, f"{config}:dpo:8").returncode != 0
    cut, whole = tmp_path / f"{config}-dpo", fits / f"{config}-dpo"
    assert len(metrics(cut)) == 9 and not (cut / "trained.npz").exists()
    done = group(tmp_path, f"{config}:dpo")
    assert done.returncode == 0, done.stderr[-5000:]
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (cut / "trained.npz").read_bytes() == (whole / "trained.npz").read_bytes()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_a_whole_one_serves_another_stage(fits, tmp_path):
    shutil.copytree(fits / "zero2-dpo", tmp_path / "zero3-dpo")  # goes on under another stage
    shutil.rmtree(tmp_path / "zero3-dpo" / "checkpoints" / "00000020")
    state = tmp_path / "zero3-dpo" / "checkpoints" / "00000018" / "state.safetensors"
    data = state.read_bytes()
    state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused = group(tmp_path, "zero3:dpo")
    assert refused.returncode != 0 and "is damaged" in refused.stderr
    state.write_bytes(data)
    assert group(tmp_path, "zero3:dpo").returncode == 0
    ended = metrics(tmp_path / "zero3-dpo")[-1]["loss"]
    assert ended == pytest.approx(metrics(fits / "zero2-dpo")[-1]["loss"], abs=1e-6)
