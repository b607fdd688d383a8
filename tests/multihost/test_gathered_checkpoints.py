"""What hosts without a common folder save and go on with, and one process as well."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from selfevo_jax.learn.checkpoints import Checkpoints

WORKER = Path(__file__).with_name("checkpoint_worker.py")


def test_one_process_saves_two_hosts_go_on_and_one_process_again(tmp_path, where):
    """To the bit: the sign of a zero, what is no number, and half precision."""
    odd = np.array([-0.0, np.nan, -np.inf, 1e-45], np.float32)
    weights = np.concatenate([odd, np.arange(20, dtype=np.float32)]).reshape(8, 3)
    state = {
        "weights": jnp.asarray(weights),
        "half": jnp.arange(8).astype(jnp.bfloat16) / 3,
        "count": jnp.int32(7),
    }
    one = Checkpoints(tmp_path / "0", {"lr": 1.0})
    one.save(4, state)
    one.close()
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    hosts = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), where, str(host)],
            env=os.environ | {"XLA_FLAGS": flags},
        )
        for host in range(2)
    ]
    assert [host.wait(120) for host in hosts] == [0, 0]
    assert not (tmp_path / "1").exists()
    again = Checkpoints(tmp_path / "0", {"lr": 1.0})
    assert again.latest() == 5
    found = again.restore(5, state)
    again.close()
    assert found["count"] == 8
    for name in ("weights", "half"):
        assert found[name].dtype == state[name].dtype
        assert np.asarray(found[name]).tobytes() == np.asarray(state[name]).tobytes()
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, state)
