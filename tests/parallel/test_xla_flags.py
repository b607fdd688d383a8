"""The flags for NVIDIA cards: when they are set, and that this XLA knows them."""

import os
import subprocess
import sys

import pytest

from selfevo_jax.parallel.xla_flags import WANTED, set_gpu_flags

LATENCY = "--xla_gpu_enable_latency_hiding_scheduler"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, f"{LATENCY}=true"),
        ({"XLA_FLAGS": "--xla_dump_to=x"}, f"--xla_dump_to=x {LATENCY}=true"),
        ({"XLA_FLAGS": f"{LATENCY}=false"}, f"{LATENCY}=false"),
    ],
)
def test_the_users_flags_win(given, wanted, tmp_path):
    driver = tmp_path / "version"
    before = dict(given)
    set_gpu_flags(given, driver)
    assert given == before
    driver.touch()
    set_gpu_flags(given, driver)
    assert given == {"XLA_FLAGS": wanted}


def test_xla_knows_them():
    """XLA ends a process whose flags it does not know."""
    flags = " ".join(f"--{name}={value}" for name, value in WANTED.items())
    code = "import jax; jax.devices(); jax.numpy.ones(2) + 1"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
