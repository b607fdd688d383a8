"""Fits of two processes under DeepSpeed against the same fits in JAX, and a kill in the middle."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed: pip install 'selfevo_jax[deepspeed]'",
                allow_module_level=True)  # fmt: skip

JOBS = ("zero2:dpo", "zero2:sft", "zero3:dpo", "zero3:sft", "zero3:full", "zero2:bf16",
        "zero3:divided")  # fmt: skip
MORE = ("zero2_offload:full", "zero3_offload:divided", "zero3:remat", "zero3:bf16")
# What they are compared with; bfloat16 with torch in one process, which rounds alike.
WANTED = {"dpo": "jax:dpo", "sft": "jax:sft", "full": "jax:full", "remat": "jax:dpo",
          "divided": "jax:divided",
          "bf16": "alone:bf16"}  # fmt: skip
WORKER = Path(__file__).with_name("zero_worker.py")


@pytest.fixture(scope="module")
def together():
    """Does jobs of `zero_worker.py` in two processes: the exit code of each."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, WORKER], env=environment, stdin=PIPE, stdout=PIPE, text=True
    ) as worker:

        def do(folder: Path, *jobs: str) -> list[int]:
            print(folder, *jobs, file=worker.stdin, flush=True)
            answer = next(line for line in worker.stdout if line.startswith("DONE "))
            return json.loads(answer.removeprefix("DONE "))

        yield do


@pytest.fixture(scope="module")
def fits(together, tmp_path_factory) -> Path:
    """The folder with every job done, and what they are compared with."""
    folder = tmp_path_factory.mktemp("fits")
    assert together(folder, *sorted(set(WANTED.values())), *JOBS) == [0, 0], printed(folder)
    return folder


@pytest.fixture(scope="module")
def more_fits(together, fits) -> Path:
    """The same folder with the slow jobs."""
    assert together(fits, *MORE) == [0, 0], printed(fits)
    return fits


def printed(folder: Path) -> str:
    """The last words of both processes."""
    return "\n".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(2))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "trained.npz", allow_pickle=False) as saved:
        return dict(saved)


def assert_same_fit(job: str, fits: Path) -> None:
    """Every loss, what goes with it, and what was trained in the end."""
    fit = job.partition(":")[2]
    found, wanted = folder_of(job, fits), folder_of(WANTED[fit], fits)
    slack = 10 if fit == "bf16" else 1  # each process rounds its own gradient
    rows, others = metrics(found), metrics(wanted)
    assert len(rows) == 20
    for mine, theirs in zip(rows, others, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4 * slack)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3 * slack)
        for exact in ("lr", "tokens", "padding_share", "examples", "loss_tokens"):
            assert mine[exact] == theirs[exact], exact
    assert abs(rows[0]["loss"] - rows[-1]["loss"]) > 0.005 / slack
    mine, theirs = trained(found), trained(wanted)
    assert mine.keys() == theirs.keys()
    for path, values in theirs.items():
        np.testing.assert_allclose(mine[path], values, atol=1e-3 * slack, err_msg=path)


def folder_of(job: str, fits: Path) -> Path:
    return fits / job.replace(":", "-")


@pytest.mark.parametrize("job", JOBS)
def test_twenty_steps_of_two_processes_are_those_of_one(job, fits):
    assert_same_fit(job, fits)


@pytest.mark.slow
@pytest.mark.parametrize("job", MORE)
def test_so_are_those_with_offloading_and_recomputing(job, more_fits):
    assert_same_fit(job, more_fits)


@pytest.mark.parametrize("config", [pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_a_kill_in_the_middle_changes_nothing(config, together, fits, tmp_path):
    codes = together(tmp_path, f"{config}:dpo:8")
    assert codes[0] == -signal.SIGKILL and codes[1] != 0
    cut, whole = tmp_path / f"{config}-dpo", fits / f"{config}-dpo"
    assert len(metrics(cut)) == 9 and not (cut / "trained.npz").exists()
    assert together(tmp_path, f"{config}:dpo") == [0, 0], printed(tmp_path)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (cut / "trained.npz").read_bytes() == (whole / "trained.npz").read_bytes()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_a_whole_one_serves_another_stage(
    together, fits, tmp_path
):
    shutil.copytree(fits / "zero2-dpo", tmp_path / "zero3-dpo")  # goes on under another stage
    shutil.rmtree(tmp_path / "zero3-dpo" / "checkpoints" / "00000020")
    state = tmp_path / "zero3-dpo" / "checkpoints" / "00000014" / "state.safetensors"
    data = state.read_bytes()
    state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert together(tmp_path, "zero3:dpo") != [0, 0]
    assert "is damaged" in printed(tmp_path)
    state.write_bytes(data)
    assert together(tmp_path, "zero3:dpo") == [0, 0], printed(tmp_path)
    ended = metrics(tmp_path / "zero3-dpo")[-1]["loss"]
    assert ended == pytest.approx(metrics(fits / "zero2-dpo")[-1]["loss"], abs=1e-6)
