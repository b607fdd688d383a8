"""A model that no host holds whole is saved as if one did."""

import os
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("export_worker.py")


def start(folder, devices, *where):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.Popen(
        [sys.executable, WORKER, folder, *map(str, where)],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_hosts_write_the_same_files(tmp_path, free_port):
    started = [start(tmp_path / "one", 8)]
    where = f"localhost:{free_port}"
    started += [start(tmp_path / "two", 4, where, 2, host) for host in range(2)]
    for process in started:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
