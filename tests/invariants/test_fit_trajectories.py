"""Fits that must agree: killed and resumed against untouched, one device against eight."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("fit_worker.py")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a worker; workers share compiled programs, so that only the first one compiles."""
    compiled = tmp_path_factory.mktemp("compiled")
    return functools.partial(launch, compiled)


def launch(compiled, folder, *options, mesh="1,1,1", every=2, devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }
    command = [sys.executable, WORKER, folder, mesh, str(every), *map(str, options)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def leaves(folder, name="adapter"):
    with np.load(folder / f"{name}.npz") as stored:
        return {name: stored[name] for name in stored.files}


def losses(folder):
    return metric(folder, "loss")


def metric(folder, name):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


@pytest.fixture(scope="module")
def untouched(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untouched")
    finish(start(folder))
    return folder


def test_killed_at_steps_and_resumed_ends_with_the_same_bits(start, untouched, tmp_path):
    """SIGKILL before the first checkpoint, between two, and before the last."""
    for last in (0, 4, 8):
        process = start(tmp_path, last)
        process.communicate(timeout=300)
        assert process.returncode == -9
        assert not (tmp_path / "adapter.npz").exists()
    finish(start(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (untouched / "metrics.jsonl").read_bytes()
    resumed, expected = leaves(tmp_path), leaves(untouched)
    assert resumed.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)


@pytest.mark.slow
def test_killed_at_any_moment(start, untouched, tmp_path):
    """SIGKILL while the first checkpoint is being saved: a half one is never picked."""
    process = start(tmp_path, every=1)
    while not list(tmp_path.glob("checkpoints/*[0-9]*")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    finish(start(tmp_path, every=1))
    for name, leaf in leaves(untouched).items():
        np.testing.assert_array_equal(leaves(tmp_path)[name], leaf, err_msg=name)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"mesh": "1,1,1"}, {"mesh": "1,4,2", "devices": 8}),
        pytest.param(
            {"mesh": "1,4,2", "devices": 8}, {"mesh": "2,2,1,2", "devices": 8},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["more chips", "a sequence axis"],
)  # fmt: skip
def test_killed_on_one_mesh_goes_on_on_another(start, untouched, tmp_path, before, after):
    """The same batches, and in float32 the same losses to 1e-6."""
    process = start(tmp_path, 4, **before)
    process.communicate(timeout=300)
    assert process.returncode == -9
    assert list(tmp_path.glob("checkpoints/[0-9]*"))
    finish(start(tmp_path, **after))
    assert losses(tmp_path) == pytest.approx(losses(untouched), abs=1e-6, rel=0)
    assert metric(tmp_path, "tokens") == metric(untouched, "tokens")


def test_one_device_equals_eight(start, untouched, tmp_path):
    """fsdp 4 x tensor 2 virtual devices: a gradient, every loss, and the adapter at the end."""
    finish(start(tmp_path, mesh="1,4,2", devices=8))
    for name, leaf in leaves(untouched, "gradient").items():
        np.testing.assert_allclose(
            leaves(tmp_path, "gradient")[name], leaf, atol=1e-5, err_msg=name
        )
    assert losses(tmp_path) == pytest.approx(losses(untouched), abs=1e-5)
    for name, leaf in leaves(untouched).items():
        np.testing.assert_allclose(leaves(tmp_path)[name], leaf, atol=1e-4, err_msg=name)
